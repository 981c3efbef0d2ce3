"""Rectifiers that can be applied block by block and still give the same bits.

A rectifier that only compares, copies and multiplies gives the same value wherever a block begins.
Those that call exponentials do not: torch computes the ends of a block with other functions than
its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from fxreduce.calibration.sums import Fill


def filling(kind: str, parameters: Mapping[str, float] | None = None) -> Fill | None:
    """What writes the rectifier's output for its first argument to its second one.

    Args:
        kind: "relu", "relu6", "hardtanh" or "leaky_relu"; others have none.
        parameters: the rectifier's own, by torch's names; those left out have torch's defaults.
    """
    make = _FILLS.get(kind)
    return None if make is None else partial(make, **(parameters or {}))


def _relu(z: Tensor, out: Tensor) -> None:
    torch.clamp(z, min=0, out=out)


def _hardtanh(z: Tensor, out: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> None:
    torch.clamp(z, min_val, max_val, out=out)


def _relu6(z: Tensor, out: Tensor) -> None:
    torch.clamp(z, 0, 6, out=out)


def _leaky_relu(z: Tensor, out: Tensor, negative_slope: float = 0.01) -> None:
    torch.ops.aten.leaky_relu.out(z, negative_slope, out=out)


_FILLS: dict[str, Callable[..., None]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
}
