"""Mean pooling seen as an operator, and pointwise operators on the maps that pooling leaves.

Averaging over windows is a depthwise convolution: what it costs, any cost model can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch

from fxreduce.operators.affine import Conv, Operator, ScaleShift, on_meta
from fxreduce.operators.kernels import regroup

# Length, step and padding of the windows along one axis.
Window = tuple[int, int, int]


def mean_pool(
    channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] = (),
    divisor: int | None = None,
) -> Conv:
    """The operator of a mean pooling that counts its padding, on `channels` channels, in float64.

        y_c(t) = 1 / divisor * sum_a x_c(s t - p + a)

    It is exact where each window is divided by the same number: not for windows that reach beyond
    the padding (`ceil_mode`), nor for those that leave the padding out of their count.

    Args:
        channels: C; the kernel is [C, 1, *kernel].
        kernel, stride, padding: one entry for each spatial axis.
        divisor: what the sum over a window is divided by; the window's size where None.
    """
    share = 1 / (prod(kernel) if divisor is None else divisor)
    weight = torch.full((channels, 1, *kernel), share, dtype=torch.float64)
    return Conv(weight, stride=stride, padding=padding, groups=channels)


def averaging(channels: int, windows: Sequence[Window]) -> Operator:
    """The geometry of the convolution that averages windows of every channel."""
    kernel, stride, padding = zip(*windows, strict=True)
    return on_meta(mean_pool(channels, kernel, stride, padding))


def window_for(length: int, target: int) -> Window:
    """The window that makes an axis of one length as long as `target`, as adaptive pooling does.

    It is a window of about the size that torch averages over, where that varies by position.
    """
    if length < target:
        padding = (target - length + 1) // 2
        return length + 2 * padding - target + 1, 1, padding
    stride = length // target
    return length - (target - 1) * stride, stride, 0


def on_rank(operator: Operator, rank: int) -> Operator:
    """A pointwise operator on values with another number of axes right of the channel axis.

    A Linear has no groups: they become zeros in its weight.
    """
    if isinstance(operator, ScaleShift):
        return replace(operator, rank=rank)
    groups = operator.groups if rank else 1
    weight = regroup(operator.weight, operator.groups, groups)
    return Conv(weight.reshape(*weight.shape[:2], *(1,) * rank), operator.bias, groups=groups)


def is_pointwise(operator: Operator) -> bool:
    """Whether the operator maps each position alone, and all of them."""
    if isinstance(operator, ScaleShift):
        return True
    return operator.is_pointwise and set(operator.stride) <= {1}


def has_bias(operator: Operator) -> bool:
    """Whether the operator adds something to what it multiplies."""
    return operator.has_shift if isinstance(operator, ScaleShift) else operator.bias is not None
