"""Averages are read in every dialect, and rated as the depthwise convolution that they equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.capture import capture
from fxreduce.graph.pooling import MeanPooling, read_mean_pooling
from fxreduce.operators.setting import Setting


class Average(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.windows = nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False)
        self.all = nn.AdaptiveAvgPool2d((None, 1))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def read(model: Any, *inputs: Tensor) -> MeanPooling:
    graph_module = capture(model, *inputs)
    found = (read_mean_pooling(graph_module, node) for node in graph_module.graph.nodes)
    (pooling,) = (each for each in found if each is not None)
    assert isinstance(pooling, MeanPooling)
    return pooling


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            lambda m, x: m.windows(x),
            {"axes": (-2, -1), "kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)},
        ),
        (
            lambda m, x: F.avg_pool2d(x, 3, padding=1),
            {"kernel": (3, 3), "stride": (3, 3), "keeps_constants": False},
        ),
        (
            lambda m, x: F.avg_pool2d(x, 3, 1, divisor_override=2),
            {"stride": (1, 1), "keeps_constants": False},
        ),
        (lambda m, x: m.all(x), {"axes": (-2, -1), "kernel": (), "is_global": False}),
        (lambda m, x: F.adaptive_avg_pool2d(x, 1), {"size": (1, 1), "is_global": True}),
        (lambda m, x: x.mean((3, 2)), {"axes": (-2, -1), "keeps_axes": False, "size": (1, 1)}),
        (lambda m, x: torch.mean(x, 1, True), {"axes": (-3,), "keeps_axes": True}),
    ],
)
def test_every_form_is_read(
    function: Callable[[Any, Tensor], Any], expected: dict[str, Any]
) -> None:
    model, x = Average(function).eval(), torch.randn(2, 4, 5, 6)
    for pooling in (read(model, x), read(export(model, (x,)))):
        assert {name: getattr(pooling, name) for name in expected} == expected
        # What it is rated as writes what torch writes, in whatever ceil mode leaves.
        if -3 not in pooling.axes:
            behind = pooling.after(-3, Setting((2, 4, 5, 6))).shape
            assert abs(torch.tensor(behind) - torch.tensor(model(x).shape)).max() <= 1


def test_an_average_over_tokens_is_rated_as_one_over_an_axis_behind_the_channels() -> None:
    model = Average(lambda m, x: x.mean(1)).eval()
    pooling = read(model, torch.randn(2, 7, 4))
    conv, setting = pooling.on(-1, Setting((2, 7, 4)))
    assert (conv.kernel, conv.groups, setting.shape) == ((7,), 4, (2, 4, 7))
    assert pooling.after(-1, Setting((2, 7, 4))).shape == (2, 4)
