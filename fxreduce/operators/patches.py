"""An affine operator as matrices: what each output reads, and the weights that multiply it.

For each group of a convolution, outputs [P, O] = patches [P, F] · weightsᵀ [F, O]. A patch holds
the input under the kernel, then the kernel's view of a constant 1 that is padded with zeros where
the operator has a border, and at last the 1 that multiplies the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from fxreduce.operators.affine import Conv


def features(operator: Conv) -> int:
    """F, how many numbers a patch of one group holds."""
    taps = prod(operator.kernel)
    inner = operator.in_channels // operator.groups * taps
    return inner + (taps if operator.border is not None else 0) + 1


def shape_of_weights(operator: Conv) -> tuple[int, int, int]:
    """[groups, O, F], the shape of `weights`."""
    return operator.groups, operator.out_channels // operator.groups, features(operator)


def output_size(operator: Conv, x: Tensor) -> tuple[int, ...]:
    """The sizes of the output's spatial axes."""
    geometry = zip(
        x.shape[x.dim() - operator.rank :],
        operator.kernel,
        operator.stride,
        operator.padding,
        operator.dilation,
        strict=True,
    )
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)


def patches(operator: Conv, x: Tensor, positions: Tensor) -> Tensor:
    """What outputs at some positions read.

    Args:
        operator: not transposed.
        x: [N, C, *spatial]; for rank 0 [N, C].
        positions: which of the flattened spatial positions of the output, [L].

    Returns:
        [groups, N·L, F].
    """
    size, groups = output_size(operator, x), operator.groups
    taps = [tap[..., positions] for tap in _taps(operator, x, size)]
    read = torch.stack(taps, -1)  # [N, C, L, taps]
    count = read.shape[0] * read.shape[2]
    read = read.unflatten(1, (groups, -1)).movedim(1, 0)  # [groups, N, C / groups, L, taps]
    columns = [read.movedim(2, 3).reshape(groups, count, -1)]
    if operator.border is not None:
        ones = _taps(operator, torch.ones_like(x[:1, :1]), size)
        seen = torch.stack([tap[0, 0, positions] for tap in ones], -1)  # [L, taps]
        columns.append(seen.repeat(x.shape[0], 1).expand(groups, -1, -1))
    columns.append(x.new_ones(groups, count, 1))
    return torch.cat(columns, 2)


def outputs(operator: Conv, y: Tensor, positions: Tensor) -> Tensor:
    """The outputs at some positions, [groups, N·L, O], of y: [N, Cout, *spatial]."""
    picked = y.flatten(2)[..., positions] if operator.rank else y.unsqueeze(2)[..., positions]
    grouped: Tensor = picked.unflatten(1, (operator.groups, -1)).movedim(1, 0)  # [groups, N, O, L]
    return grouped.movedim(2, 3).flatten(1, 2)


def weights(operator: Conv) -> Tensor:
    """What multiplies the patches, [groups, O, F]."""
    out = operator.out_channels
    columns = [operator.weight.reshape(out, -1)]
    if operator.border is not None:
        columns.append(operator.border.reshape(out, -1))
    bias = operator.weight.new_zeros(out) if operator.bias is None else operator.bias
    columns.append(bias.unsqueeze(1))
    matrix: Tensor = torch.cat(columns, 1).unflatten(0, (operator.groups, -1))
    return matrix


def with_weights(operator: Conv, matrices: Tensor) -> Conv:
    """The operator with other weights, [groups, O, F]; it has a bias."""
    rows = matrices.flatten(0, 1)
    inner = operator.weight[0].numel()
    border = None if operator.border is None else rows[:, inner:-1].reshape(operator.border.shape)
    weight = rows[:, :inner].reshape(operator.weight.shape)
    return replace(operator, weight=weight, border=border, bias=rows[:, -1])


def _taps(operator: Conv, x: Tensor, size: tuple[int, ...]) -> Iterator[Tensor]:
    """What each tap of the kernel reads, [N, C, positions]."""
    if operator.rank == 0:
        yield x.unsqueeze(2)
        return
    mode = "constant" if operator.padding_mode == "zeros" else operator.padding_mode
    pads = [p for padding in reversed(operator.padding) for p in (padding, padding)]
    padded = torch.nn.functional.pad(x, pads, mode=mode)
    for offsets in product(*map(range, operator.kernel)):
        steps = zip(offsets, operator.dilation, operator.stride, size, strict=True)
        spans: list[Any] = [slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in steps]
        yield padded[(..., *spans)].flatten(2)
