"""A pooling runs before the pointwise operators that it follows, where that is exact and pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, randomised
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS, groups_and_width, images, windows
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.nodes import shape_of
from fxreduce.passes.pool_first import PoolFirst


class Calls(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def order(graph_module: torch.fx.GraphModule) -> list[str]:
    calls = graph_module.graph.find_nodes(op="call_module")
    return [str(node.target) for node in calls]


@given(st.data(), st.sampled_from((1, 2, 3)), st.sampled_from(CHANNELS), st.booleans())
def test_the_order_changes_and_the_output_does_not(
    data: st.DataObject, rank: int, channels: int, bias: bool
) -> None:
    groups, width = data.draw(groups_and_width(channels))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](channels, width, 1, 1, 0, 1, groups, bias)
    pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1](*data.draw(windows(rank)).values())
    model = randomised(nn.Sequential(conv, pool))
    x = data.draw(images(channels, rank))
    try:
        expected = model(x)
    except RuntimeError:  # the input is smaller than the window
        return
    result = PoolFirst().run(capture(model, x))
    assert_close(expected, result.graph_module(x))
    assert order(result.graph_module) == (["1", "0"] if result.modified else ["0", "1"])


def test_a_transition_of_a_densenet_pools_before_it_multiplies() -> None:
    layers = [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 1), nn.AvgPool2d(2)]
    model, x = randomised(nn.Sequential(*layers)), double(2, 64, 6, 5)
    for graph_module in (capture(model, x), capture(export(model, (x,)))):
        result = PoolFirst().run(graph_module)
        assert_close(model(x), result.graph_module(x))
        assert Counter(edit.action for edit in result.edits) == Counter(replaced=2)
    fused = fxreduce.fuse(model, example_inputs=x)
    assert_close(model(x), fused(x))
    assert order(fused) == ["0", "1", "3", "2"]
    report = fxreduce.report(fused)
    assert (report.macs_before, report.macs_after) == (30 * 2048, 6 * 2048)
    assert (report.operators_before, report.operators_after) == (2, 2)


def test_a_pooling_passes_all_the_pointwise_operators_before_it() -> None:
    layers = [nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.AvgPool2d(2)]
    model, x = randomised(nn.Sequential(*layers)), double(1, 4, 4, 4)
    result = PoolFirst().run(capture(model, x))
    assert order(result.graph_module) == ["3", "0", "1", "2"]
    assert_close(model(x), result.graph_module(x))
    shapes = [shape_of(node) for node in result.graph_module.graph.find_nodes(op="call_module")]
    assert shapes == [(1, width, 2, 2) for width in (4, 6, 6, 4)]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (
            [nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 2, 1)],
            "the bias before it would not be pooled to itself: it pads by (1, 1) and sums to 1 of",
        ),
        (
            [nn.BatchNorm2d(4), nn.AvgPool2d(2, divisor_override=1)],
            "the bias before it would not be pooled to itself: it pads by (0, 0) and sums to 4 of",
        ),
        ([nn.Conv2d(64, 1, 1), nn.AvgPool2d(4, 2)], "pooling first costs"),
    ],
)
def test_what_is_not_exact_or_does_not_pay_stays_with_the_reason(
    layers: list[nn.Module], reason: str
) -> None:
    model = randomised(nn.Sequential(*layers))
    channels = getattr(layers[0], "in_channels", 4)
    result = PoolFirst().run(capture(model, double(1, channels, 6, 6)))
    assert not result.modified
    assert [refusal.reason[: len(reason)] for refusal in result.refusals] == [reason]


def test_a_padded_pooling_goes_first_where_there_is_no_bias() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.AvgPool2d(3, 2, 1)))
    result = PoolFirst().run(capture(model, x := double(1, 4, 5, 6)))
    assert result.modified
    assert_close(model(x), result.graph_module(x))


def test_a_value_with_other_readers_stays_what_they_read() -> None:
    model = Calls(lambda m, x: F.avg_pool2d(y := m[0](x), 2).sum() + y, nn.Conv2d(4, 4, 1))
    result = PoolFirst().run(capture(randomised(model), double(1, 4, 4, 4)))
    assert not result.modified
    assert [refusal.reason for refusal in result.refusals] == ["layers.0 has 2 readers"]


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(4, 4, 3), nn.AvgPool2d(2)],
        [nn.Conv2d(4, 4, 1, stride=2), nn.AvgPool2d(2)],
        [nn.Conv2d(4, 4, 1), nn.AvgPool2d(2, 1)],
        [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AvgPool2d(2)],
        [nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)],
    ],
)
def test_other_operators_and_poolings_are_none_of_its_business(layers: list[nn.Module]) -> None:
    result = PoolFirst().run(capture(nn.Sequential(*layers).eval(), torch.randn(1, 4, 8, 8)))
    assert (result.modified, result.refusals) == (False, ())
