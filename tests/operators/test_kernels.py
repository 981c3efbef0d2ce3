"""Grouped kernels: the same map with fewer groups."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close

from fxreduce.operators.affine import Conv, apply
from fxreduce.operators.kernels import contract, in_groups, regroup


@pytest.mark.parametrize(("groups", "fewer"), [(6, 6), (6, 3), (6, 2), (6, 1), (3, 1), (1, 1)])
def test_fewer_groups_compute_the_same(groups: int, fewer: int) -> None:
    weight = torch.randn(12, 6 // groups, 3, 2, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    assert_close(
        apply(Conv(weight, groups=groups), x),
        apply(Conv(regroup(weight, groups, fewer), groups=fewer), x),
    )


def test_a_regrouped_kernel_is_zero_between_the_old_groups() -> None:
    weight = torch.tensor([[1], [2], [3], [4]])
    assert regroup(weight, 4, 2).tolist() == [[1, 0], [0, 2], [3, 0], [0, 4]]
    assert regroup(weight, 2, 1).tolist() == [[1, 0], [2, 0], [0, 3], [0, 4]]


def test_the_leading_axis_is_split_in_order() -> None:
    assert in_groups(torch.arange(6), 3).tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_contracting_is_convolving_a_constant_image(groups: int) -> None:
    weight = torch.randn(8, 4 // groups, 3, dtype=torch.float64)
    vector = torch.randn(4, dtype=torch.float64)
    image = vector.view(1, 4, 1).expand(1, 4, 3)
    assert_close(
        apply(Conv(weight, groups=groups), image).flatten(), contract(weight, vector, groups).sum(1)
    )
