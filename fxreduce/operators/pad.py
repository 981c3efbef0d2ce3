"""Padding with zeros as the depthwise convolution that it is."""

from __future__ import annotations

from typing import Any

import torch

from fxreduce.operators.affine import Conv


def zero_pad(channels: int, sides: tuple[tuple[int, int], ...]) -> Conv:
    """The operator that adds zeros on both sides of each axis, in float64.

    A convolution pads both sides alike, by the wider one; where they differ, its kernel is as much
    longer than one tap as they do, and reads on the side that was padded less:

        y_c(t) = x_c(t - l):   p = max(l, r),   k = 1 + |l - r|,   w(a) = [a = p - l]

    Args:
        channels: C; the kernel is [C, 1, *k].
        sides: (l, r) for each spatial axis, from the left, none negative.
    """
    padding = tuple(max(side) for side in sides)
    kernel = tuple(1 + abs(left - right) for left, right in sides)
    weight = torch.zeros(channels, 1, *kernel, dtype=torch.float64)
    place: tuple[Any, ...] = tuple(p - left for p, (left, _) in zip(padding, sides, strict=True))
    weight[(..., *place)] = 1
    return Conv(weight, padding=padding, groups=channels)
