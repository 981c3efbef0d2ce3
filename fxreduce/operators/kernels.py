"""Arithmetic on grouped kernels that merging needs."""

from __future__ import annotations

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
