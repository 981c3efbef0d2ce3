"""Agreement of the processes of torch.distributed: sums of all of them, one decision.

Without a process group, or with one process, everything here returns what it is given. Sums are
taken in the order of the ranks, so that every rank has the same bits.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fxreduce import errors
from fxreduce.calibration import meeting, wire
from fxreduce.calibration.meeting import Head, RanksLostError, State
from fxreduce.calibration.statistics import ChannelStatistics
from fxreduce.errors import CalibrationError, FxReduceError, PlanError, first_line

T = TypeVar("T")
Tensors = Mapping[str, Tensor]
# Numbers that each rank sends at once while sums are taken: 16 MB.
_CHUNK = 1 << 21


def is_distributed() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if is_distributed() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, of which all ranks know."""


class Ranks:
    """The processes that share the calibration data of one task, or one process alone.

    Every method is called by all of them, in the same order and with the same subject `what`;
    otherwise all raise. Within `together` the failure of one rank is raised on all.

    Attributes:
        rank: the number of this process.
        size: how many there are.
        active: whether work goes on that they do `together`.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.active = False
        self._asked = False  # whether Ctrl-C waits for the next meeting
        self._over = False  # whether all ranks know that there is no further one
        self._told: BaseException | None = None  # the interruption that they have been told of

    @classmethod
    def now(cls) -> Ranks:
        """All processes of torch.distributed, as far as there are any."""
        return cls(dist.get_rank(), dist.get_world_size()) if is_distributed() else ALONE

    def all(self, what: str, value: T) -> list[T]:
        """The values of all ranks, which JSON can express, in the order of the ranks."""
        if self.size == 1:
            return [value]
        return [wire.unpacked(each) for each in self._gather(what, wire.packed(value))]

    def first(self, what: str, compute: Callable[[], T]) -> T:
        """What rank 0 computes, which JSON can express; the ranks must not meet in it."""
        if self.size == 1:
            return compute()
        own = wire.packed(compute()) if self.rank == 0 else wire.nothing()
        found: T = wire.unpacked(self._from_first(what, own))
        return found

    def mean(self, what: str, value: float) -> float:
        """The mean of what the ranks have; where all have the same, that."""
        values = self.all(what, value)
        return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)

    def objection(self, what: str, reason: str | None) -> str | None:
        """The first reason that a rank has; None where none has one."""
        return next((each for each in self.all(what, reason) if each is not None), None)

    def require_same(self, what: str, value: str, advice: str) -> None:
        """Raise PlanError on all ranks unless they have the same value."""
        values = self.all(what, value)
        apart = [number for number, each in enumerate(values) if each != values[0]]
        if apart:
            raise PlanError(
                f"all ranks must have the same {what}; rank {apart[0]} has not what rank 0 has. "
                f"{advice}"
            )

    def added(self, what: str, tensors: Tensors) -> dict[str, Tensor]:
        """The sums of tensors by name, in float64; a rank may have none of a name.

        They are where the rank's own are, else on the CPU. Memory: besides the sums, `_CHUNK`
        numbers of every rank, and the tensors once more in float64.
        """
        if self.size == 1:
            return {name: each.double() for name, each in tensors.items()}
        shapes: dict[str, list[int]] = {}
        for theirs in self.all(what, {name: list(each.shape) for name, each in tensors.items()}):
            shapes = theirs | shapes
        found = {}
        flat = [
            tensors[name].detach().double().flatten().cpu()
            if name in tensors
            else torch.zeros(math.prod(shape), dtype=torch.float64)
            for name, shape in shapes.items()
        ]
        total = self._sum(what, torch.cat(flat)) if flat else torch.empty(0)
        for (name, shape), part in zip(
            shapes.items(), total.split([len(each) for each in flat]), strict=True
        ):
            device = tensors[name].device if name in tensors else torch.device("cpu")
            found[name] = part.view(shape).to(device)
        return found

    def tensors(self, what: str, tensors: Tensors) -> list[dict[str, Tensor]]:
        """The tensors of all ranks by name, bit for bit, in the order of the ranks, on the CPU."""
        if self.size == 1:
            return [dict(tensors)]
        layouts = self.all(what, wire.layout(tensors))
        found = self._gather(what, wire.joined(tensors))
        return [wire.split(*each) for each in zip(found, layouts, strict=True)]

    def first_tensors(self, what: str, compute: Callable[[], Tensors]) -> dict[str, Tensor]:
        """The tensors that rank 0 computes, bit for bit; the ranks must not meet in it."""
        if self.size == 1:
            return dict(compute())
        own = dict(compute()) if self.rank == 0 else {}
        layout = self.first(what, lambda: wire.layout(own))
        data = self._from_first(what, wire.joined(own))
        return own if self.rank == 0 else wire.split(data, layout)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that all ranks end alike: what one of them raises, all raise, and say which.

        Ctrl-C takes effect where they meet next, on all ranks; a second one at once.
        """
        if self.size == 1:
            yield
            return
        self.active, self._over, self._told = True, False, None
        with self._deferring_interrupts():
            try:
                yield
            except KeyboardInterrupt as error:
                self.interrupt(error)
                raise
            except BaseException as error:
                self._fail(error)
                raise
            else:
                self.all("the end", None)
            finally:
                self.active = False

    def interrupt(self, error: KeyboardInterrupt) -> None:
        """Tell the other ranks that this one was interrupted, unless all of them were."""
        if self.size == 1 or self._over or isinstance(error, Interrupted) or error is self._told:
            return
        self._told = error
        with suppress(Interrupted):
            self._meet("an interruption", 0, State.INTERRUPTED)

    def _fail(self, error: BaseException) -> None:
        """Tell the other ranks of an error, which then names the rank."""
        if self._over or isinstance(error, RanksLostError):
            return
        self._over = True
        message = wire.packed({"kind": type(error).__name__, "message": str(error)})
        try:
            heads = meeting.heads(State.FAILED, "a failure", len(message))
            failures = _failures(heads, message)
        except RanksLostError:
            return
        if len(failures) == self.size and len({str(each) for each in failures.values()}) == 1:
            return  # all were asked for what cannot be
        if isinstance(error, FxReduceError):
            error.args = (f"rank {self.rank}: {error}", *error.args[1:])
        else:
            error.add_note(f"on rank {self.rank} of torch.distributed")

    def _gather(self, what: str, payload: Tensor) -> list[Tensor]:
        sizes = [head.size for head in self._meet(what, len(payload))]
        return meeting.payloads(payload, sizes, what)

    def _from_first(self, what: str, payload: Tensor) -> Tensor:
        size = self._meet(what, len(payload))[0].size
        return meeting.broadcast(payload, size, what)

    def _sum(self, what: str, values: Tensor) -> Tensor:
        """The sum of the ranks' float64 [N], in place."""
        for part in values.split(_CHUNK):
            found = self._gather(what, wire.memory(part))
            part.zero_()
            for each in found:
                part += each.view(torch.float64)
        return values

    def _meet(self, what: str, size: int, state: State = State.GOING) -> list[Head]:
        """What all ranks say first.

        Raises:
            FxReduceError: a rank has failed, or ranks have gone different ways.
            Interrupted: a rank was interrupted.
        """
        heads = meeting.heads(State.INTERRUPTED if self._asked else state, what, size)
        if any(head.state is State.FAILED for head in heads):
            self._over = True
            raise _failure(_failures(heads, wire.nothing()))
        if any(head.state is State.INTERRUPTED for head in heads):
            self._asked = False
            raise Interrupted
        apart = [number for number, head in enumerate(heads) if head.subject != heads[0].subject]
        if apart:
            self._over = True
            raise PlanError(
                f"all ranks must go the same way; rank {self.rank} has come to {what!r}, and rank "
                f"{apart[0]} is elsewhere than rank 0. Call with the same arguments on every rank; "
                "what budgets, importances and cost models of your own say must not differ"
            )
        return heads

    @contextmanager
    def _deferring_interrupts(self) -> Iterator[None]:
        """Let Ctrl-C wait for the next meeting, where nobody else has taken care of it."""
        python = signal.default_int_handler
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not python:
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self._asked:
                python(number, frame)
            self._asked = True

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, python)
            if self._asked:  # there was no meeting since
                self._asked = False
                signal.raise_signal(signal.SIGINT)


ALONE = Ranks()


def over_ranks(
    statistics: Mapping[str, ChannelStatistics],
    ranks: Ranks | None = None,
    device: torch.device | None = None,
) -> dict[str, ChannelStatistics]:
    """The statistics of all ranks' batches together, by site; the same on every rank.

    They are merged in the order of the ranks. A rank may have none of a site; it then gets them on
    the device.
    """
    ranks = ranks or Ranks.now()
    if ranks.size == 1:
        return dict(statistics)
    own = {
        f"{key} {name}": tensor
        for name, each in statistics.items()
        for key, tensor in each.tensors().items()
    }
    found = list(own.values())
    device = found[0].device if found else device
    merged: dict[str, ChannelStatistics] = {}
    for tensors in ranks.tensors("the statistics", own):
        states: dict[str, dict[str, Tensor]] = {}
        for label, tensor in tensors.items():
            key, _, name = label.partition(" ")
            states.setdefault(name, {})[key] = tensor.to(device)
        for name, state in states.items():
            theirs = ChannelStatistics.from_tensors(state)
            merged[name] = merged[name].merge(theirs) if name in merged else theirs
    return merged


def mean_over_ranks(value: float) -> float:
    """The mean of what the ranks have; where all have the same, that."""
    return Ranks.now().mean("a mean", value)


def first_rank(value: T) -> T:
    """What rank 0 has, which JSON can express, on every rank."""
    return Ranks.now().first("what rank 0 has", lambda: value)


def _failures(heads: list[Head], message: Tensor) -> dict[int, dict[str, str]]:
    """What the failed ranks say, by their numbers."""
    sizes = [head.size if head.state is State.FAILED else 0 for head in heads]
    found = enumerate(meeting.payloads(message, sizes, "a failure"))
    return {number: wire.unpacked(each) for number, each in found if len(each)}


def _failure(failures: Mapping[int, Mapping[str, str]]) -> FxReduceError:
    """The error of the first rank that failed, as the others raise it."""
    number, found = next(iter(failures.items()))
    kind = getattr(errors, found["kind"], None)
    if isinstance(kind, type) and issubclass(kind, FxReduceError):
        return kind(f"rank {number}: {found['message']}")
    message = first_line(Exception(found["message"] or found["kind"]))
    return CalibrationError(f"rank {number} has failed with {found['kind']}: {message}")
