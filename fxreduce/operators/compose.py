"""compose(f, g): the one operator that equals f then g, or a refusal.

With kernels k1, k2, strides s1, s2, dilations d1, d2 and paddings p1, p2 the merged convolution has

    K = d1 (k1 - 1) + s1 d2 (k2 - 1) + 1,   stride s1 s2,   padding p1 + s1 p2,
    W[o, i, s1 d2 a + d1 b] += sum_m W2[o, m, a] W1[m, i, b],   bias b2 + sum W2 b1.

It is exact where g reads only positions that f computed. Where g pads f's output with zeros, the
merged operator would read f beyond its border: exact only for a pointwise f, whose bias is then
carried by a constant channel of ones that ends where the input ends (`Conv.border`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import gcd
from typing import Any

from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, in_double, nonzero
from fxreduce.operators.kernels import contract, in_groups, regroup


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
    f, g = in_double(f), in_double(g)
    if isinstance(g, ScaleShift):
        return _then_scale(f, g)
    if isinstance(f, ScaleShift):
        return _scale_then(f, g)
    return _conv_then_conv(f, g)


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
    if g.transposed:
        if f.has_shift:
            return Refusal(
                "a shift before a transposed convolution reaches each position by another number "
                "of taps"
            )
        return replace(g, weight=g.weight * f.scale.view(-1, *(1,) * (g.rank + 1)))
    columns = f.scale.view(g.groups, 1, -1, *(1,) * g.rank)
    weight = (in_groups(g.weight, g.groups) * columns).flatten(0, 1)
    merged = replace(g, weight=weight)
    return _carry_bias(merged, g, f.shift if f.has_shift else None)


def _conv_then_conv(f: Conv, g: Conv) -> Operator | Refusal:
    if f.transposed or g.transposed:
        return Refusal("a transposed convolution merges with scale and shift only")
    if g.is_padded and not f.is_pointwise:
        return Refusal(
            f"the second operator pads by {_size(g.padding)} what the first, a {_size(f.kernel)} "
            f"kernel padded by {_size(f.padding)}, computed: the merged one would read beyond that "
            "border"
        )
    if g.is_padded and g.padding_mode != "zeros" and max(f.stride) > 1:
        return Refusal(f"{g.padding_mode} padding does not commute with a stride")
    groups = gcd(f.groups, g.groups)
    first, second = regroup(f.weight, f.groups, groups), regroup(g.weight, g.groups, groups)
    weight, dilation = _merge_kernels(first, second, f, g, groups)
    # A border means padding, so at most one of the two has one: g pads only behind a pointwise f.
    border = g.border
    if f.border is not None:
        dense = regroup(g.weight, g.groups, 1)
        border = _merge_kernels(f.border.unsqueeze(1), dense, f, g, 1)[0].squeeze(1)
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


def _merge_kernels(
    first: Tensor, second: Tensor, f: Conv, g: Conv, groups: int
) -> tuple[Tensor, tuple[int, ...]]:
    """The merged kernel [Cout, Cin / groups, *k] and its dilation.

    Taps lie at s1 d2 a + d1 b; their greatest common step is kept as a dilation.
    """
    rank = f.rank
    w1, w2 = in_groups(first, groups), in_groups(second, groups)
    outer = [s1 * d2 for s1, d2 in zip(f.stride, g.dilation, strict=True)]
    size, dilation = [], []
    for axis in range(rank):
        k1, k2 = first.shape[2 + axis], second.shape[2 + axis]
        reach = f.dilation[axis] * (k1 - 1) + outer[axis] * (k2 - 1)
        step = gcd(f.dilation[axis] * (k1 > 1), outer[axis] * (k2 > 1)) or 1
        size.append(reach // step + 1)
        dilation.append(step)
    merged = w1.new_zeros(groups, w2.shape[1], w1.shape[2], *size)
    w1_flat = w1.flatten(2)
    spread = tuple(max(d // step, 1) for d, step in zip(f.dilation, dilation, strict=True))
    for tap in product(*map(range, second.shape[2:])):
        window: list[Any] = [...]
        for axis, place in enumerate(tap):
            start = outer[axis] * place // dilation[axis]
            last = start + (first.shape[2 + axis] - 1) * spread[axis]
            window.append(slice(start, last + 1, spread[axis]))
        at_tap: tuple[Any, ...] = (..., *tap)
        term = w2[at_tap] @ w1_flat
        merged[tuple(window)] += term.reshape(*term.shape[:2], *w1.shape[2:])
    return merged.flatten(0, 1), tuple(dilation)


def _size(values: tuple[int, ...]) -> str:
    return "×".join(map(str, values))
