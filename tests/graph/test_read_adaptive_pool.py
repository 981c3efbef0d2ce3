"""Adaptive pooling is an operator where its windows are the same for every input of the graph."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close, randomised, read_operators, refusals
from torch import nn
from torch.export import Dim, export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.operators.affine import Conv
from tests.versions import since

FIXED = since((2, 9), "what fixes the sizes of an exported graph is not part of it")
CASES = [
    (nn.AdaptiveAvgPool1d(4), (2, 3, 8), (2,)),
    (nn.AdaptiveAvgPool2d(4), (2, 3, 8, 8), (2, 2)),
    (nn.AdaptiveAvgPool2d((2, None)), (2, 3, 8, 5), (4, 1)),
    (nn.AdaptiveAvgPool2d(7), (1, 3, 7, 7), (1, 1)),
    (nn.AdaptiveAvgPool3d((1, 2, 3)), (1, 2, 4, 4, 6), (4, 2, 2)),
]


@FIXED
@pytest.mark.parametrize(("pooling", "shape", "kernel"), CASES)
def test_in_a_graph_of_one_size_windows_that_divide_it_are_those_of_an_average(
    pooling: nn.Module, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    captured = capture(export(nn.Sequential(pooling, nn.ReLU()), (x,)))
    (operator,) = read_operators(captured, x)
    assert isinstance(operator, Conv)
    assert (operator.kernel, operator.stride, operator.groups) == (kernel, kernel, shape[1])


@FIXED
def test_windows_of_several_lengths_are_refused() -> None:
    x = torch.randn(1, 3, 8, 8)
    captured = capture(export(nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.ReLU()), (x,)))
    (reason,) = refusals(captured).values()
    assert reason == "its windows differ in length: [8, 8] positions become [3, 3]"


def test_where_inputs_may_have_other_sizes_nothing_is_read() -> None:
    model, x = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)
    sizes = ({2: Dim("h", min=4, max=64), 3: Dim("w", min=4, max=64)},)
    for captured in (
        capture(model, x),
        capture(export(model, (x,), dynamic_shapes=sizes)),
    ):
        assert read_operators(captured, x) == []
        assert refusals(captured) == {}


def test_an_average_over_whole_axes_stays_a_mean() -> None:
    x = torch.randn(2, 3, 8, 8)
    captured = capture(export(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU()), (x,)))
    assert read_operators(captured, x) == []


@FIXED
def test_it_merges_with_the_convolution_before_it_where_that_pays() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(4)))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    fused = fxreduce.fuse(export(model, (x,)))
    (conv,) = (m for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert (conv.kernel_size, conv.stride, conv.padding) == ((6, 6), (4, 4), (1, 1))
    assert_close(model(x), fused(x))
    with pytest.raises(AssertionError, match="Guard failed"):
        fused(torch.randn(2, 3, 12, 12, dtype=torch.float64))
