"""add(f, g): the one operator that equals f(x) + g(x), or a refusal.

The taps of both kernels are laid on one grid about the shared centre: tap a of a kernel with
dilation d and padding p reads the input at s y - p + d a. The smaller kernel is padded with zeros.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, as_conv, side_by_side
from fxreduce.operators.geometry import once_for_geometries
from fxreduce.operators.kernels import regroup
from fxreduce.operators.transposed import as_ordinary, as_transposed, fitted, reach_of


@once_for_geometries
def add(f: Operator, g: Operator) -> Operator | Refusal:
    """The operator equal to f(x) + g(x) for every input of every size.

    Args:
        f, g: operators on the same input; the skip connection is `affine.identity`.

    Returns:
        A new operator in float64 (for operators on the meta device: its geometry), or a `Refusal`.
    """
    if f.rank != g.rank:
        return Refusal(f"they act on different axes: spatial ranks {f.rank} and {g.rank}")
    if (f.in_channels, f.out_channels) != (g.in_channels, g.out_channels):
        return Refusal(
            f"the branches map {f.in_channels} to {f.out_channels} channels and "
            f"{g.in_channels} to {g.out_channels}"
        )
    f, g = side_by_side(f, g)
    if isinstance(f, ScaleShift) and isinstance(g, ScaleShift):
        return ScaleShift(f.scale + g.scale, f.shift + g.shift, f.rank)
    return _add_convs(as_conv(f), as_conv(g))


def _add_convs(f: Conv, g: Conv) -> Conv | Refusal:
    f, g = as_ordinary(f), as_ordinary(g)
    if f.transposed is g.transposed:
        return _add_alike(f, g)
    first, second = as_transposed(f), as_transposed(g)
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        return first if isinstance(first, Refusal) else second
    return _add_alike(first, second)


def _add_alike(f: Conv, g: Conv) -> Conv | Refusal:
    """The sum of two ordinary or of two transposed convolutions."""
    if f.stride != g.stride:
        return Refusal(f"the branches have strides {f.stride} and {g.stride}")
    if _growth(f) != _growth(g):
        return Refusal(f"the branches change the spatial size by {_growth(f)} and {_growth(g)}")
    modes = {op.padding_mode for op in (f, g) if op.is_padded}
    if len(modes) > 1:
        return Refusal(f"the branches pad in different ways: {', '.join(sorted(modes))}")
    groups = gcd(f.groups, g.groups)
    grid = [_common_grid(f, g, axis) for axis in range(f.rank)]
    padding = tuple(max(pair) for pair in zip(f.padding, g.padding, strict=True))
    weight = sum_of(
        *(_lay(regroup(op.weight, op.groups, groups), op, padding, grid) for op in (f, g))
    )
    borders = [
        None if op.border is None else _lay(op.border.unsqueeze(1), op, padding, grid).squeeze(1)
        for op in (f, g)
    ]
    assert weight is not None  # both kernels exist
    merged = Conv(
        weight,
        sum_of(f.bias, g.bias),
        stride=f.stride,
        padding=padding,
        dilation=tuple(step for step, _ in grid),
        groups=groups,
        padding_mode=modes.pop() if modes else "zeros",
        border=sum_of(*borders),
    )
    return _widened(merged, f) if f.transposed else merged


def _widened(merged: Conv, f: Conv) -> Conv:
    """The transposed `merged`, given the output padding that makes it write as much as f."""
    widened = replace(merged, transposed=True)
    missing = zip(_growth(f), _growth(widened), strict=True)
    return fitted(replace(widened, output_padding=tuple(own - bare for own, bare in missing)))


def sum_of(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _growth(operator: Conv) -> tuple[int, ...]:
    """What an operator of stride 1 adds to the spatial size: 2 p - d (k - 1).

    Transposed ones add as much less, and their output padding.
    """
    grown = tuple(2 * p - r for p, r in zip(operator.padding, reach_of(operator), strict=True))
    if not operator.transposed:
        return grown
    return tuple(o - size for o, size in zip(operator.output_padding, grown, strict=True))


def _common_grid(f: Conv, g: Conv, axis: int) -> tuple[int, int]:
    """The step and the number of taps of the grid that holds the taps of both kernels."""
    step = abs(f.padding[axis] - g.padding[axis])
    for operator in (f, g):
        step = gcd(step, operator.dilation[axis] * (operator.kernel[axis] > 1))
    step = step or 1
    low = -max(f.padding[axis], g.padding[axis])
    high = max(op.dilation[axis] * (op.kernel[axis] - 1) - op.padding[axis] for op in (f, g))
    return step, (high - low) // step + 1


def _lay(
    weight: Tensor, operator: Conv, padding: tuple[int, ...], grid: list[tuple[int, int]]
) -> Tensor:
    """`weight` [.., .., *k] with its taps at their places on the common grid."""
    laid = weight.new_zeros(*weight.shape[:2], *(taps for _, taps in grid))
    places: list[Any] = [...]
    for axis, (step, _) in enumerate(grid):
        start = (padding[axis] - operator.padding[axis]) // step
        stride = max(operator.dilation[axis] // step, 1)
        places.append(slice(start, start + (operator.kernel[axis] - 1) * stride + 1, stride))
    laid[tuple(places)] = weight
    return laid
