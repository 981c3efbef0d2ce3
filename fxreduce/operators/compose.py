"""compose(f, g): the one operator that equals f then g, or a refusal.

With kernels k1, k2, strides s1, s2, dilations d1, d2 and paddings p1, p2 the merged convolution has

    K = d1 (k1 - 1) + s1 d2 (k2 - 1) + 1,   stride s1 s2,   padding p1 + s1 p2,
    W[o, i, s1 d2 a + d1 b] += sum_m W2[o, m, a] W1[m, i, b],   bias b2 + sum W2 b1.

It is exact where g reads only positions that f computed. Where g pads f's output with zeros, the
merged operator would read f beyond its border: exact for a pointwise f, whose bias is then carried
by a constant channel of ones that ends where the input ends (`Conv.border`), and for an f that is
zero there.
Transposed convolutions have rules of their own: `fxreduce.operators.transposed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import gcd

from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, nonzero, side_by_side
from fxreduce.operators.geometry import once_for_geometries
from fxreduce.operators.kernels import contract, in_groups, merge_kernels, regroup
from fxreduce.operators.transposed import UNEVEN, as_ordinary, compose_transposed, reach_of


@once_for_geometries
def compose(f: Operator, g: Operator) -> Operator | Refusal:
    """The operator equal to g(f(x)) for every input of every size.

    Args:
        f: the operator applied first.
        g: the operator applied to f's output.

    Returns:
        A new operator in float64 (for operators on the meta device: its geometry), or a `Refusal`.
    """
    if f.rank != g.rank:
        return Refusal(f"they act on different axes: spatial rank {f.rank} before, {g.rank} after")
    if f.out_channels != g.in_channels:
        return Refusal(f"{f.out_channels} channels are written, {g.in_channels} are read")
    f, g = side_by_side(f, g)
    if isinstance(g, ScaleShift):
        return _then_scale(f, g)
    if isinstance(f, ScaleShift):
        return _scale_then(f, g)
    return _conv_then_conv(f, g)


def compose_all(operators: Sequence[Operator]) -> Operator | Refusal:
    """The operators one after the other as one, or the first refusal.

    Matrices are multiplied from the narrower end on, which takes fewer multiply-adds: of the three
    that classify a VGG's image a quarter.
    """
    matrices = all(isinstance(each, ScaleShift) or each.is_pointwise for each in operators)
    backwards = matrices and operators[-1].out_channels < operators[0].in_channels
    merged, *rest = reversed(operators) if backwards else operators
    for each in rest:
        composed = compose(each, merged) if backwards else compose(merged, each)
        if isinstance(composed, Refusal):
            return composed
        merged = composed
    return merged


def _then_scale(f: Operator, g: ScaleShift) -> Operator:
    """Scale the rows: exact for every f, as a scale-shift acts on each position alone."""
    if isinstance(f, ScaleShift):
        return ScaleShift(f.scale * g.scale, f.shift * g.scale + g.shift, f.rank)
    per_row = g.scale.view(-1, *(1,) * (f.rank + 1))
    weight = f.weight
    if f.transposed:
        rows = g.scale.view(f.groups, 1, -1, *(1,) * f.rank)
        weight = (in_groups(weight, f.groups) * rows).flatten(0, 1)
    else:
        weight = weight * per_row
    bias = g.shift if f.bias is None else f.bias * g.scale + g.shift
    border = None if f.border is None else f.border * per_row.squeeze(1)
    return replace(f, weight=weight, bias=nonzero(bias), border=border)


def _scale_then(f: ScaleShift, g: Conv) -> Operator | Refusal:
    """Scale the columns; the shift becomes bias, or border where g pads it with zeros."""
    g = as_ordinary(g)
    if g.transposed:
        if f.has_shift:
            return Refusal(UNEVEN)
        return replace(g, weight=g.weight * f.scale.view(-1, *(1,) * (g.rank + 1)))
    columns = f.scale.view(g.groups, 1, -1, *(1,) * g.rank)
    weight = (in_groups(g.weight, g.groups) * columns).flatten(0, 1)
    merged = replace(g, weight=weight)
    return _carry_bias(merged, g, f.shift if f.has_shift else None)


def _conv_then_conv(f: Conv, g: Conv) -> Operator | Refusal:
    f, g = as_ordinary(f), as_ordinary(g)
    if f.transposed or g.transposed:
        return compose_transposed(f, g)
    if g.is_padded and not f.is_pointwise and not _ends_in_zeros(f, g):
        return Refusal(
            f"the second operator pads by {_size(g.padding)} what the first, a {_size(f.kernel)} "
            f"kernel padded by {_size(f.padding)}, computed: the merged one would read beyond that "
            "border"
        )
    if g.is_padded and g.padding_mode != "zeros" and max(f.stride) > 1:
        return Refusal(f"{g.padding_mode} padding does not commute with a stride")
    groups = gcd(f.groups, g.groups)
    first, second = regroup(f.weight, f.groups, groups), regroup(g.weight, g.groups, groups)
    merge = partial(merge_kernels, stride=f.stride, dilations=(f.dilation, g.dilation))
    weight, dilation = merge(first, second, groups)
    # At most one of the two has a border: it means padding, and g pads only behind a pointwise f
    # or without a border of its own.
    border = g.border
    if f.border is not None:
        dense = regroup(g.weight, g.groups, 1)
        border = merge(f.border.unsqueeze(1), dense, 1)[0].squeeze(1)
    merged = Conv(
        weight=weight,
        bias=g.bias,
        stride=tuple(s1 * s2 for s1, s2 in zip(f.stride, g.stride, strict=True)),
        padding=tuple(
            p1 + s1 * p2 for p1, s1, p2 in zip(f.padding, f.stride, g.padding, strict=True)
        ),
        dilation=dilation,
        groups=groups,
        padding_mode=g.padding_mode if g.is_padded else f.padding_mode,
        border=border,
    )
    return _carry_bias(merged, g, f.bias)


def _ends_in_zeros(f: Conv, g: Conv) -> bool:
    """Whether f, read on beyond its output where g pads, is the zeros that g's padding is.

    At a border that f pads by at least its reach, all that lies beyond reads padding alone.
    """
    modes = {op.padding_mode for op in (f, g) if op.is_padded}
    if f.bias is not None or g.border is not None or modes != {"zeros"}:
        return False
    axes = zip(f.padding, reach_of(f), g.padding, strict=True)
    return all(p1 >= reach or p2 == 0 for p1, reach, p2 in axes)


def _carry_bias(merged: Conv, g: Conv, shift: Tensor | None) -> Conv:
    """Add what `shift`, [Cin of g], becomes behind g: a bias, or a border where g pads with zeros.

    Any other padding repeats values that carry the shift themselves.
    """
    if shift is None:
        return merged
    taps = contract(g.weight, shift, g.groups)
    if g.is_padded and g.padding_mode == "zeros":
        return replace(merged, border=taps if merged.border is None else merged.border + taps)
    bias = taps.reshape(g.out_channels, -1).sum(1)
    return replace(merged, bias=nonzero(bias if merged.bias is None else merged.bias + bias))


def _size(values: tuple[int, ...]) -> str:
    return "×".join(map(str, values))
