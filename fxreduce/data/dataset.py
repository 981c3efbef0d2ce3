"""A data set as the trainer and the calibration see it: one source, three parts that are disjoint.

Samples are made a batch at a time, so that no data set has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxreduce.errors import CalibrationError, UnsupportedError

# One input of a model by position, or several by name.
Inputs = Tensor | dict[str, Tensor]


class Source(Protocol):
    """Labelled samples that can be asked for by index."""

    def fetch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """The samples at `indices` `[N]` as a model is judged on them, and their labels `[N]`."""

    def vary(self, indices: Tensor, seed: int) -> tuple[Inputs, Tensor]:
        """The samples as a model is trained on them: changed at random, the label kept.

        What happens to a sample depends on `seed` and its index alone, so that it is the same
        however samples are dealt to batches, worker processes and ranks.
        """


@dataclass(frozen=True)
class Batches:
    """The samples of `source` at `indices`, in this order; can be iterated any number of times."""

    source: Source
    indices: Tensor
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        for indices in self.indices.split(self.batch_size):
            yield self.source.fetch(indices)


@dataclass(frozen=True)
class InputBatches:
    """Batches without their labels, for what measures a model and must not know them."""

    batches: Batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Inputs]:
        return (inputs for inputs, _ in self.batches)


@dataclass(frozen=True)
class DataSet:
    """Samples of one source in three disjoint parts.

    Attributes:
        name: As it was asked for.
        classes: How many different labels there are; they count from 0.
        source: The samples of all parts.
        train: Indices `[N]` to train on and to measure rectifiers on.
        validation: Indices that decisions are taken on.
        test: Indices that only final figures look at.
    """

    name: str
    classes: int
    source: Source
    train: Tensor
    validation: Tensor
    test: Tensor

    def part(self, name: str, batch_size: int) -> Batches:
        """Batches of the part called `train`, `validation` or `test`, in a fixed order.

        Raises:
            CalibrationError: The part is empty.
        """
        indices: Tensor = getattr(self, name)
        if not len(indices):
            raise CalibrationError(
                f"{self.name} is too small: its {name} part has no sample. Training needs samples "
                "for train, validation and test"
            )
        return Batches(self.source, indices, batch_size)


def first_samples(inputs: Inputs, count: int) -> Inputs:
    """The first `count` samples of a batch."""
    if isinstance(inputs, dict):
        return {name: value[:count] for name, value in inputs.items()}
    return inputs[:count]


def as_tensor(inputs: Inputs, purpose: str) -> Tensor:
    """The inputs where they are images `[N, C, H, W]`.

    Raises:
        UnsupportedError: They are text; the message says what `purpose` needs images.
    """
    if isinstance(inputs, Tensor):
        return inputs
    raise UnsupportedError(f"{purpose} takes images; the data are text ({', '.join(inputs)})")


def seeded_split(count: int, parts: tuple[int, ...], *, seed: int) -> tuple[Tensor, ...]:
    """The numbers 0 to `count` − 1 in an order drawn from `seed`, cut into parts.

    Args:
        count: How many samples there are.
        parts: Sizes of all parts but the last, which gets the rest.
        seed: Seed of the order.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(order.split([*parts, count - sum(parts)]))
