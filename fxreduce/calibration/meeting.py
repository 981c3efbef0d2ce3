"""Where the processes of torch.distributed meet: each brings bytes, or word that it cannot go on.

All that they tell each other begins with a head of three numbers, whatever it is. So a rank that
has failed can say so wherever the others are, and none waits for it in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from fxreduce.errors import CalibrationError, first_line


class State(IntEnum):
    """How a rank comes to a meeting."""

    GOING = 0
    INTERRUPTED = 1
    FAILED = 2


@dataclass(frozen=True)
class Head:
    """What a rank says first: how it is, a number for what it is about, and how many bytes."""

    state: State
    subject: int
    size: int


class RanksLostError(CalibrationError):
    """There is nobody to meet any more."""


def heads(state: State, what: str, size: int) -> list[Head]:
    """The heads of all ranks, in their order; `what` is the subject."""
    own = torch.tensor([state, crc32(what.encode()), size])
    return [Head(State(each[0]), each[1], each[2]) for each in map(_numbers, _gathered(own, what))]


def payloads(payload: Tensor, sizes: Sequence[int], what: str) -> list[Tensor]:
    """The bytes of all ranks, uint8 of these sizes, in the order of the ranks, on the CPU."""
    if not (longest := max(sizes)):
        return [payload for _ in sizes]
    padded = payload.new_zeros(longest)
    padded[: len(payload)] = payload
    found = _gathered(padded, what)
    return [each[:size] for each, size in zip(found, sizes, strict=True)]


def broadcast(payload: Tensor, size: int, what: str) -> Tensor:
    """The bytes of rank 0, uint8 [size], on the CPU."""
    data = torch.empty(size, dtype=torch.uint8)
    if not size:
        return data
    with _meeting(what):
        data = (payload if dist.get_rank() == 0 else data).to(_device())
        dist.broadcast(data, 0)
    return data.cpu()


def _gathered(vector: Tensor, what: str) -> list[Tensor]:
    """The vectors of all ranks, of equal length, in the order of the ranks, on the CPU."""
    with _meeting(what):
        vector = vector.to(_device())
        vectors = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
        dist.all_gather(vectors, vector)
    return [each.cpu() for each in vectors]


@contextmanager
def _meeting(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # the latter where there is no group any more
        raise RanksLostError(
            f"the ranks of torch.distributed have lost each other at {what!r}: "
            f"{first_line(error)}. Functions that share calibration data are called on every rank, "
            "while all are in the process group"
        ) from error


def _numbers(vector: Tensor) -> list[int]:
    return [int(each) for each in vector.tolist()]


def _device() -> torch.device:
    """Where collectives of the group's backend want their tensors."""
    cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
