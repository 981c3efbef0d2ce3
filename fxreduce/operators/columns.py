"""columns(h, spans): the part of an operator that reads some of the input channels.

h(cat([a, b]))  =  columns(h, a's channels)(a) + columns(h, b's channels)(b) + bias
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, ScaleShift

# First channel and number of channels.
Span = tuple[int, int]


@overload
def columns(operator: Conv, spans: Sequence[Span]) -> Conv: ...


@overload
def columns(operator: ScaleShift, spans: Sequence[Span]) -> ScaleShift: ...


def columns(operator: Operator, spans: Sequence[Span]) -> Operator:
    """The operator on the input channels of `spans` alone, in that order, without its bias.

    A scale-shift keeps the shifts of these channels, which no others have a share in.

    Args:
        operator: a scale-shift, or a convolution without groups or border.
    """

    def chosen(tensor: Tensor, axis: int) -> Tensor:
        return torch.cat([tensor.narrow(axis, *span) for span in spans], axis)

    if isinstance(operator, ScaleShift):
        return replace(operator, scale=chosen(operator.scale, 0), shift=chosen(operator.shift, 0))
    return replace(operator, weight=chosen(operator.weight, 1), bias=None)
