"""Arithmetic on grouped kernels that merging needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import gcd
from typing import Any

import torch
from torch import Tensor


def in_groups(tensor: Tensor, groups: int) -> Tensor:
    """The leading axis split into groups: [G * n, ...] -> [G, n, ...]."""
    return tensor.reshape(groups, -1, *tensor.shape[1:])


def regroup(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """The same map written with `fewer` groups, a divisor of `groups`.

    weight: [Cout, Cin / groups, *k] -> [Cout, Cin / fewer, *k], zero between the old groups.
    """
    if groups == fewer:
        return weight
    ratio = groups // fewer
    blocks = in_groups(weight, groups)
    old = torch.arange(groups, device=weight.device)
    spread = blocks.new_zeros(groups, blocks.shape[1], ratio, *blocks.shape[2:])
    spread[old, :, old % ratio] = blocks
    return spread.flatten(2, 3).flatten(0, 1)


def contract(weight: Tensor, vector: Tensor, groups: int) -> Tensor:
    """sum_i W[o, i, *k] v_i over the input channels of o's group: [Cout, *k] from v [Cin]."""
    blocks = in_groups(weight, groups)
    values = vector.view(groups, 1, -1, *(1,) * (weight.dim() - 2))
    return (blocks * values).sum(2).flatten(0, 1)


def reverse(weight: Tensor, groups: int) -> Tensor:
    """The kernel with its taps in reverse and the channels of each group swapped.

    weight: [A, B / groups, *k] -> [B, A / groups, *k]. Its own inverse.
    """
    swapped = in_groups(weight, groups).transpose(1, 2).flatten(0, 1)
    return swapped.flip(tuple(range(2, weight.dim())))


def merge_kernels(
    first: Tensor,
    second: Tensor,
    groups: int,
    *,
    stride: Sequence[int],
    dilations: tuple[Sequence[int], Sequence[int]],
) -> tuple[Tensor, tuple[int, ...]]:
    """The kernel of one convolution after another, and its dilation.

        W[o, i, s1 d2 a + d1 b] += sum_m W2[o, m, a] W1[m, i, b]

    The taps' greatest common step is kept as a dilation.

    Args:
        first, second: [Cmid, Cin / groups, *k1] and [Cout, Cmid / groups, *k2].
        groups: of both.
        stride: s1, of the first.
        dilations: d1 and d2.

    Returns:
        The kernel [Cout, Cin / groups, *k] and one dilation for each axis.
    """
    w1, w2 = in_groups(first, groups), in_groups(second, groups)
    inner = dilations[0]
    outer = [s1 * d2 for s1, d2 in zip(stride, dilations[1], strict=True)]
    size, dilation = [], []
    for axis, (near, far) in enumerate(zip(inner, outer, strict=True)):
        k1, k2 = first.shape[2 + axis], second.shape[2 + axis]
        step = gcd(near * (k1 > 1), far * (k2 > 1)) or 1
        size.append((near * (k1 - 1) + far * (k2 - 1)) // step + 1)
        dilation.append(step)
    merged = w1.new_zeros(groups, w2.shape[1], w1.shape[2], *size)
    w1_flat = w1.flatten(2)
    spread = [max(d // step, 1) for d, step in zip(inner, dilation, strict=True)]
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
