"""Rectifiers that can be applied block by block and still give the same bits.

A rectifier that only compares, copies and multiplies gives the same value wherever a block begins.
Those that call exponentials do not: torch computes the ends of a block with other functions than
its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

import torch

from fxreduce.calibration.sums import Fill


def filling(kind: str, parameters: Mapping[str, float] | None = None) -> Fill | None:
    """What writes the rectifier's output for its first argument to its second one.

    Args:
        kind: "relu", "relu6", "hardtanh" or "leaky_relu"; others have none.
        parameters: the rectifier's own, by torch's names; those left out have torch's defaults.
    """
    make = _FILLS.get(kind)
    return None if make is None else make(**(parameters or {}))


def _relu() -> Fill:
    return Fill(lambda z, out: torch.clamp(z, min=0, out=out), bound=inf)


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Fill:
    bound = max_val if min_val == 0 else None
    return Fill(lambda z, out: torch.clamp(z, min_val, max_val, out=out), bound)


def _relu6() -> Fill:
    return _hardtanh(0.0, 6.0)


def _leaky_relu(negative_slope: float = 0.01) -> Fill:
    return Fill(lambda z, out: torch.ops.aten.leaky_relu.out(z, negative_slope, out=out))


_FILLS: dict[str, Callable[..., Fill]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
}
