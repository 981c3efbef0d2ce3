"""How far a model's output is from the original's on held-out calibration batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxreduce.calibration.batches import Calibration, tensor_bytes

# Bytes of the original's outputs that are kept; those of further batches are computed again.
BOUND = 1 << 26


class HeldOutError:
    """The squared error of a model's outputs on held-out batches, over the original's square.

    Args:
        original: whose outputs are right; it runs once as far as `BOUND` allows.
        calibration: with held-out batches.
    """

    def __init__(self, original: nn.Module, calibration: Calibration) -> None:
        self._original, self._calibration = original, calibration
        self._kept: dict[int, list[Tensor]] = {}
        self._bytes = 0

    def __call__(self, other: nn.Module) -> float:
        apart = whole = 0.0
        for number, batch in enumerate(self._calibration.check_batches()):
            expected = self._expected(number, batch)
            seen = pytree.tree_leaves(self._calibration.run(other, number, batch))
            for a, b in zip(expected, seen, strict=True):
                if isinstance(a, Tensor) and a.is_floating_point():
                    apart += float((a.double() - b.double()).square().sum())
                    whole += float(a.double().square().sum())
        sums = {"sums": torch.tensor([apart, whole], dtype=torch.float64)}
        found = self._calibration.ranks.added("the error of the output", sums)["sums"]
        apart, whole = float(found[0]), float(found[1])
        return apart / whole if whole else apart

    def _expected(self, number: int, batch: Any) -> list[Any]:
        if number in self._kept:
            return self._kept[number]
        leaves = pytree.tree_leaves(self._calibration.run(self._original, number, batch))
        size = tensor_bytes(leaves)
        if self._bytes + size <= BOUND:
            self._kept[number], self._bytes = leaves, self._bytes + size
        return leaves


def output_error(original: nn.Module, other: nn.Module, calibration: Calibration) -> float:
    """The `HeldOutError` of one model."""
    return HeldOutError(original, calibration)(other)
