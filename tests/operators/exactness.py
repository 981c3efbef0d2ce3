"""Which pairs of operators merge exactly, found without merging them, and how merges are held."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from checks import assert_close
from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, ScaleShift, apply
from fxreduce.operators.transposed import as_ordinary, as_transposed

PADDED = "computed: the merged one would read beyond that border"
STRIDED = "padding does not commute with a stride"
UNEVEN = "a bias or shift before a transposed convolution reaches each position by another number"
LEFT_OUT = "beside a transposed one leaves positions out"
PADDED_BESIDE = "padding beside a transposed convolution"
TOO_WIDE = "is wider than the kernel beside a transposed convolution reaches"
CUT_OFF = "would spread the part that is cut off"


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def expected_refusal(f: Operator, g: Operator) -> str | None:
    """The table of the design, by words of the reason; None where merging is exact."""
    if isinstance(g, ScaleShift):
        return None
    g = as_ordinary(g)
    if isinstance(f, ScaleShift):
        return UNEVEN if g.transposed and bool(f.shift.any()) else None
    f = as_ordinary(f)
    if f.transposed or g.transposed:
        return _refusal_of_transposed(f, g)
    pointwise = all(k == 1 for k in f.kernel) and not any(f.padding)
    if any(g.padding) and not pointwise:
        return None if _is_zero_where_padded(f, g) else PADDED
    if any(g.padding) and g.padding_mode != "zeros" and any(s > 1 for s in f.stride):
        return STRIDED
    return None


def _is_zero_where_padded(f: Conv, g: Conv) -> bool:
    """Whether what f would compute just beyond its output reads nothing of any input."""
    if f.bias is not None or g.border is not None or g.padding_mode != "zeros":
        return False
    if any(f.padding) and f.padding_mode != "zeros":
        return False
    for axis, size in product((axis for axis in range(f.rank) if g.padding[axis]), range(20, 24)):
        taps = [f.dilation[axis] * tap - f.padding[axis] for tap in range(f.kernel[axis])]
        last = (size - 1 - taps[-1] + f.padding[axis]) // f.stride[axis]
        beyond = (f.stride[axis] * place + tap for place in (-1, last + 1) for tap in taps)
        if any(0 <= at < size for at in beyond):
            return False
    return True


def _refusal_of_transposed(f: Conv, g: Conv) -> str | None:
    for each in (f, g):
        if each.transposed:
            continue
        if any(s > 1 for s in each.stride):
            return LEFT_OUT
        if any(each.padding) and each.padding_mode != "zeros":
            return PADDED_BESIDE
        reach = (d * (k - 1) for d, k in zip(each.dilation, each.kernel, strict=True))
        if any(p > r for p, r in zip(each.padding, reach, strict=True)):
            return TOO_WIDE
    if f.bias is not None and (g.transposed or any(g.padding)):
        return UNEVEN
    f, g = as_transposed(f), as_transposed(g)  # type: ignore[assignment]
    if any(cut_off_is_seen(f, g, axis) for axis in range(f.rank)):
        return CUT_OFF
    return None


def cut_off_is_seen(f: Conv, g: Conv, axis: int, size: int = 20) -> bool:
    """Whether a value just outside of f's output, where f crops, would reach g's output."""

    def length(operator: Conv, inputs: int) -> int:
        reach = operator.dilation[axis] * (operator.kernel[axis] - 1)
        bare = (inputs - 1) * operator.stride[axis] + reach + 1
        return bare - 2 * operator.padding[axis] + operator.output_padding[axis]

    middle, left = length(f, size), f.padding[axis]
    outside = [*range(-left, 0), *range(middle, middle + left - f.output_padding[axis])]
    return any(
        0 <= g.stride[axis] * at - g.padding[axis] + g.dilation[axis] * tap < length(g, middle)
        for at in outside
        for tap in range(g.kernel[axis])
    )


def assert_same_map(merged: Operator, chain: list[Operator], x: Tensor) -> None:
    """Equal outputs; an input that the chain is too large for is too small for the merged one."""
    try:
        expected = x
        for operator in chain:
            expected = apply(operator, expected)
    except (RuntimeError, ValueError):
        with pytest.raises((RuntimeError, ValueError)):
            apply(merged, x)
    else:
        assert_close(expected, apply(merged, x))
