"""Mean pooling seen as an operator, and pointwise operators on the maps that pooling leaves.

Averaging over windows is a depthwise convolution: what it costs, any cost model can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fxreduce.operators.affine import Conv, Operator, ScaleShift
from fxreduce.operators.kernels import regroup

# Length, step and padding of the windows along one axis.
Window = tuple[int, int, int]


def depthwise(channels: int, windows: Sequence[Window]) -> Conv:
    """The geometry of the convolution that averages windows of every channel."""
    kernel, stride, padding = zip(*windows, strict=True)
    weight = torch.empty(channels, 1, *kernel, device="meta")
    return Conv(weight, None, stride, padding, groups=channels)


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
