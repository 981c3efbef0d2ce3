"""Which rank runs which batch: whether all of them read the same loader, or each its own part."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DistributedSampler

from fxreduce.calibration import wire
from fxreduce.calibration.ranks import Ranks
from fxreduce.errors import CalibrationError, UnsupportedError, first_line

_NONE = object()


def is_parted(batches: Iterable[Any]) -> bool:
    """Whether a loader says that it gives each rank a part: it has a DistributedSampler."""
    samplers = [getattr(batches, "sampler", None)]
    samplers.append(getattr(getattr(batches, "batch_sampler", None), "sampler", None))
    return any(isinstance(each, DistributedSampler) for each in samplers)


def are_alike(ranks: Ranks, first: Any, length: int | None, parted: bool) -> bool:
    """Whether all ranks read the same loader: their first batches and lengths are the same.

    Args:
        first: this rank's first batch, None where it has none.
        length: how many batches it has, as far as it knows.
        parted: what `is_parted` says of its loader.

    Raises:
        CalibrationError: no rank has a batch.
    """
    own = None if first is None else [_digest(first), length]
    found = ranks.all("the loaders", [parted, own])
    if all(theirs is None for _, theirs in found):
        raise CalibrationError(
            "calibration needs at least one batch; the loaders of all ranks yielded none"
        )
    return not any(told for told, _ in found) and all(theirs == own for _, theirs in found)


def one_for_all(ranks: Ranks, first: Any) -> Any:
    """The first batch of the first rank that has one: shapes are learnt from it on all of them.

    Where it cannot be sent, each keeps its own.

    Raises:
        CalibrationError: it cannot be sent, and a rank has none of its own.
    """
    present = ranks.all("who has a batch", first is not None)
    owner = present.index(True)
    content, problem = _written(first if ranks.rank == owner else None)
    problem = ranks.all("whether a batch can be sent", problem)[owner]
    if problem is None:
        sent = ranks.tensors("a batch", {"": content} if ranks.rank == owner else {})
        return first if ranks.rank == owner else _read(sent[owner][""])
    if not all(present):
        raise CalibrationError(
            f"rank {present.index(False)} has no batch, and that of rank {owner} cannot be sent to "
            f"it: {problem}. Tensors in tuples, lists and dictionaries can"
        )
    return first


def of_all(ranks: Ranks, own: Sequence[Any], *, in_turn: bool) -> list[Any]:
    """What all ranks have, tensors on the CPU, in the order of the batches.

    Args:
        own: a value for each batch of this rank.
        in_turn: whether batches were dealt in turn; else those of a rank stand together.

    Raises:
        UnsupportedError: a value cannot be sent.
    """
    content, problem = _written(list(own))
    if (problem := ranks.objection("whether outputs can be sent", problem)) is not None:
        raise UnsupportedError(
            "a budget of your own compares outputs, which ranks of torch.distributed send to each "
            f"other: tensors in tuples, lists and dictionaries; {problem}. Take the tensors from "
            "them: context.outputs(module, lambda output: ...)"
        )
    found = [_read(each[""]) for each in ranks.tensors("the outputs", {"": content})]
    if in_turn:
        rounds = zip_longest(*found, fillvalue=_NONE)
        return [each for turn in rounds for each in turn if each is not _NONE]
    return [each for theirs in found for each in theirs]


def _plain(batch: Any) -> Any:
    """The batch, as a dictionary where it only behaves like one."""
    if hasattr(batch, "keys") and not isinstance(batch, dict):
        return {str(key): batch[key] for key in batch.keys()}  # noqa: SIM118
    return batch


def _written(value: Any) -> tuple[Tensor, str | None]:
    """A value as uint8 [bytes] that `_read` accepts, or why there are none."""
    file = io.BytesIO()
    try:
        on_cpu = pytree.tree_map_only(Tensor, lambda each: each.detach().cpu(), _plain(value))
        torch.save(on_cpu, file)
        content = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        _read(content)
    except Exception as error:  # whatever a class of the user's own raises
        return wire.nothing(), first_line(error)
    return content, None


def _read(content: Tensor) -> Any:
    return torch.load(io.BytesIO(wire.content(content)), weights_only=True)


def _digest(batch: Any) -> str:
    found = sha256()
    for leaf in pytree.tree_leaves(_plain(batch)):
        if isinstance(leaf, Tensor):
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(wire.content(leaf))
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()
