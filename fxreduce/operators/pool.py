"""Mean pooling as the depthwise convolution that it is."""

from __future__ import annotations

from math import prod

import torch

from fxreduce.operators.affine import Conv


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
