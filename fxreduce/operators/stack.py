"""stack(f, g): the one operator that equals cat([f(x), g(x)]) along the channels, or a refusal.

    stack(f, g) = add([f; 0], [0; g])

With rows of zeros below f's and above g's, both write all channels, and their sum is the stack: the
smaller kernel is padded with zeros about the shared centre as `add` does it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fxreduce.operators.add import add
from fxreduce.operators.affine import Conv, Operator, Refusal, as_conv, in_double
from fxreduce.operators.kernels import regroup


def stack(f: Operator, g: Operator) -> Operator | Refusal:
    """The operator equal to f's channels, then g's, for every input of every size.

    Args:
        f, g: operators on the same input. Their groups become zeros in the weight: a group of the
            stack would have to hold channels of both, which lie apart.

    Returns:
        A new operator in float64 (for operators on the meta device: its geometry), or a `Refusal`.
    """
    if f.in_channels != g.in_channels:
        return Refusal(f"the siblings read {f.in_channels} and {g.in_channels} channels")
    first, second = _dense(f), _dense(g)
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        return first if isinstance(first, Refusal) else second
    above, below = f.out_channels, g.out_channels
    return add(_among(first, 0, below), _among(second, above, 0))


def _dense(operator: Operator) -> Conv | Refusal:
    conv = as_conv(in_double(operator))
    if conv.transposed:
        return Refusal("a transposed convolution is not stacked")
    return replace(conv, weight=regroup(conv.weight, conv.groups, 1), groups=1)


def _among(operator: Conv, above: int, below: int) -> Conv:
    """The operator with channels of zeros above and below its own."""

    def widened(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        sizes = rows.shape[1:]
        return torch.cat([rows.new_zeros(above, *sizes), rows, rows.new_zeros(below, *sizes)])

    weight = widened(operator.weight)
    assert weight is not None  # as every convolution has one
    return replace(
        operator, weight=weight, bias=widened(operator.bias), border=widened(operator.border)
    )
