"""Running a model over a calibration loader, batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.calibration.loader import Loader
from fxreduce.calibration.ranks import ALONE, Ranks
from fxreduce.calibration.shares import of_all
from fxreduce.errors import CalibrationError, first_line
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.shapes import copied
from fxreduce.graph.signature import parameters
from fxreduce.progress import track

Forward = Callable[[nn.Module, Any], Any]
# Bytes of the batches that are held out, which are kept in memory.
HELD_OUT = 1 << 28


@dataclass(frozen=True)
class Calibration:
    """Where calibration data come from and how a model is called on a batch.

    Attributes:
        loader: the batches.
        forward: calls the model on a batch.
        device: where batches are moved to, or None to leave them.
        progress: see `fxreduce.progress.track`.
        held_out: batches that are kept back for checks, of this rank. They are kept in memory, as a
            loader that shuffles would find others.
        skip: every how many batches one is left out of measuring, as it is held out; 0: none.
        overwritten: whether the model overwrites its input, so that it gets a copy.
        ranks: the processes that share the batches. Of those that all of them read, each runs its
            share; those of parts of their own count as if one process read part after part.
        total: how many batches all ranks have together, known once some are held out.
        before: how many the parts of the ranks before this one have, known alike.
    """

    loader: Loader
    forward: Forward
    device: torch.device | None = None
    progress: bool | None = None
    held_out: tuple[Any, ...] = ()
    skip: int = 0
    overwritten: bool = False
    ranks: Ranks = ALONE
    total: int = 0
    before: int = 0

    @classmethod
    def of(
        cls,
        graph_module: GraphModule,
        loader: Loader,
        forward: Forward | None,
        progress: bool | None,
        ranks: Ranks = ALONE,
    ) -> Calibration:
        """The calibration of a graph module, on its device."""
        aliases = Aliases(graph_module)
        inputs = graph_module.graph.find_nodes(op="placeholder")
        return cls(
            loader,
            forward or DefaultForward.of(graph_module),
            device_of(graph_module),
            progress if ranks.rank == 0 else False,
            overwritten=any(aliases.overwritten(node) is not None for node in inputs),
            ranks=ranks,
        )

    def first(self) -> Any:
        """The first batch, for shapes and checks; the next reading begins with it."""
        return to_device(self.loader.first(), self.device)

    def batches(self, description: str) -> Iterator[tuple[int, Any]]:
        """This rank's batches to measure on, with their numbers, moved to the device."""
        total = self.loader.length()
        for number, batch in enumerate(
            track(self.loader, description, total=total, progress=self.progress)
        ):
            if self._is_own(number) and not self._is_held_out(number):
                yield number, to_device(batch, self.device)

    def hold_out(self, every: int) -> Calibration:
        """This calibration with each `every`-th batch held out: at least one, if there are two.

        Where those would take more than `HELD_OUT` bytes, fewer are.
        """
        count = self.loader.count()
        counts = [count] if self.loader.dealt else self.ranks.all("counting batches", count)
        before = 0 if self.loader.dealt else sum(counts[: self.ranks.rank])
        known = replace(self, total=sum(counts), before=before)
        if known.total < 2:  # then it serves for both
            return replace(known, held_out=known._own())
        affordable = max(1, HELD_OUT // max(1, tensor_bytes(self.loader.first())))
        every = max(every, -(-known.total // affordable))
        parted = replace(known, skip=min(every, known.total))
        return replace(parted, held_out=parted._own())

    def check_batches(self) -> Iterator[Any]:
        """This rank's batches held out, moved to the device."""
        for batch in self.held_out:
            yield to_device(batch, self.device)

    def outputs(self, module: nn.Module, take: Callable[[Any], Any] | None = None) -> list[Any]:
        """The module's outputs on the batches held out by all ranks, or what `take` makes of each.

        Raises:
            CalibrationError: the module does not run on a batch.
            UnsupportedError: ranks cannot send their outputs to each other.
        """
        own = [self.run(module, n, batch) for n, batch in enumerate(self.check_batches())]
        own = own if take is None else [take(output) for output in own]
        if self.ranks.size == 1:
            return own
        found = of_all(self.ranks, own, in_turn=self.loader.dealt)
        return [to_device(output, self.device) for output in found]

    def place(self, number: int) -> int:
        """Where a batch stands among those of all ranks that are measured on, or held out."""
        whole = self.before + number
        if not self.skip:
            return whole
        held_out = whole // self.skip
        return held_out if self._is_held_out(number) else whole - held_out

    @property
    def measured(self) -> int:
        """How many batches all ranks measure on, once some are held out."""
        return self.total - self.total // self.skip if self.skip else self.total

    def _own(self) -> tuple[Any, ...]:
        """This rank's batches that are to be held out; all, where none is left out of measuring."""
        return tuple(
            batch
            for number, batch in enumerate(self.loader)
            if self._is_own(number) and (not self.skip or self._is_held_out(number))
        )

    def _is_own(self, number: int) -> bool:
        """Whether a batch of the loader is this rank's."""
        return not self.loader.dealt or self.place(number) % self.ranks.size == self.ranks.rank

    def _is_held_out(self, number: int) -> bool:
        return bool(self.skip) and (self.before + number) % self.skip == self.skip - 1

    def run(self, module: nn.Module, number: int, batch: Any) -> Any:
        """The module's output on a batch.

        Raises:
            CalibrationError: the module does not run on the batch; batch and shapes are named.
        """
        try:
            with torch.no_grad():
                return self.forward(module, copied(batch) if self.overwritten else batch)
        except CalibrationError:
            raise
        except Exception as error:  # whatever the model's own operators raise
            raise CalibrationError(
                f"the model does not run on batch {number} of shapes {describe(batch)}: "
                f"{first_line(error)}. Check the batch, or pass forward=(module, batch) -> output"
            ) from error


@dataclass(frozen=True)
class DefaultForward:
    """Calls a module on (Tensor | (Tensor, ...) | {name: Tensor}); labels are left out.

    Of a tuple the model gets as many items as it has inputs without default, of a dictionary those
    whose names are inputs, but for optional ones that are called labels.
    """

    names: tuple[str, ...]
    required: int

    @classmethod
    def of(cls, module: nn.Module) -> DefaultForward:
        """How a graph module or another one is called, by its signature."""
        if isinstance(module, GraphModule):
            inputs = module.graph.find_nodes(op="placeholder")
            optional = {str(node.target).lstrip("*"): bool(node.args) for node in inputs}
        else:
            found = parameters(module).items()
            optional = {
                name: each.default is not each.empty or each.kind is each.KEYWORD_ONLY
                for name, each in found
            }
        names = (name for name, may_lack in optional.items() if not (may_lack and "label" in name))
        required = sum(not may_lack for may_lack in optional.values())
        return cls(tuple(names), max(required, 1))

    def __call__(self, module: nn.Module, batch: Any) -> Any:
        args, kwargs = self.arguments(batch)
        return module(*args, **kwargs)

    def arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments that the batch holds for the model."""
        if hasattr(batch, "keys"):
            known = {name: batch[name] for name in self.names if name in batch}
            if not known:
                raise CalibrationError(
                    f"none of the batch's names ({', '.join(map(str, batch.keys()))}) is an "
                    f"input of the model ({', '.join(self.names)}); pass forward=(module, batch) "
                    "-> output"
                )
            return (), known
        if isinstance(batch, (tuple, list)):
            if len(batch) < self.required:
                raise CalibrationError(
                    f"the model takes {self.required} inputs ({', '.join(self.names)}), the batch "
                    f"has {len(batch)}; pass forward=(module, batch) -> output"
                )
            return tuple(batch[: self.required]), {}
        return (batch,), {}


def device_of(module: nn.Module) -> torch.device | None:
    """Where the module's weights are, if it has any."""
    tensor = next(module.parameters(), None)
    return None if tensor is None else tensor.device


def to_device(batch: Any, device: torch.device | None) -> Any:
    """The batch with its tensors on the device."""
    if device is None:
        return batch
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def describe(batch: Any) -> str:
    """The shapes of a batch's tensors, for messages."""
    shapes = [
        str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)
    ]
    return ", ".join(shapes) or f"none (a {type(batch).__name__})"


def tensor_bytes(values: Any) -> int:
    """The memory of the tensors of a batch or of an output."""
    leaves = pytree.tree_leaves(values)
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
