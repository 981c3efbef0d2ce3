"""Where the channels are, told from shapes or from the layers around."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import Node

from fxreduce.graph.capture import capture
from fxreduce.graph.layout import channel_axis, trailing_axes


def value_of(
    model: nn.Module, path: str, example: torch.Tensor | None = None
) -> tuple[object, Node]:
    graph_module = capture(model.eval(), example)
    return graph_module, next(n for n in graph_module.graph.nodes if n.target == path)


@pytest.mark.parametrize(
    ("layers", "dimensions", "axis"),
    [
        ([nn.Conv2d(3, 4, 1), nn.ReLU()], 4, -3),
        ([nn.Conv1d(3, 4, 1), nn.ReLU()], 3, -2),
        ([nn.Linear(3, 4), nn.ReLU()], 3, -1),
        ([nn.Linear(3, 4), nn.ReLU()], 4, -1),
        ([nn.Linear(3, 4), nn.ReLU()], 2, -1),
        ([nn.LayerNorm(4), nn.GELU()], 4, -1),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()], 4, -3),
        ([nn.Identity(), nn.ReLU(), nn.Conv2d(3, 4, 1)], 4, -3),
        ([nn.Identity(), nn.ReLU(), nn.Linear(3, 4)], 4, -1),
        ([nn.Identity(), nn.ReLU()], 3, -1),
        ([nn.Identity(), nn.ReLU()], 4, -3),
        ([nn.AdaptiveAvgPool2d(1), nn.ReLU()], 4, -3),
        ([nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)], 3, -1),
        ([nn.Unflatten(1, (2, 2)), nn.ReLU(), nn.BatchNorm1d(2)], 3, -2),
    ],
)
def test_the_nearest_layer_tells_the_channel_axis(
    layers: list[nn.Module], dimensions: int, axis: int
) -> None:
    relu = next(i for i, layer in enumerate(layers) if isinstance(layer, (nn.ReLU, nn.GELU)))
    graph_module, node = value_of(nn.Sequential(*layers), str(relu))
    assert channel_axis(graph_module, node, dimensions) == axis  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "axes"),
    [
        ([nn.Conv1d(3, 4, 1)], 1),
        ([nn.Conv3d(3, 4, 1), nn.ReLU(), nn.Hardswish()], 3),
        ([nn.ConvTranspose2d(3, 4, 1), nn.ReflectionPad2d(1)], 2),
        ([nn.Flatten(), nn.Linear(3, 4)], 0),
        ([nn.Flatten(0, 2)], None),
        ([nn.Linear(3, 4)], None),
        ([nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)], None),
    ],
)
def test_without_shapes_the_layers_before_tell_how_many_axes_there_are(
    layers: list[nn.Module], axes: int | None
) -> None:
    model = nn.Sequential(*layers, nn.Identity())
    graph_module, node = value_of(model, str(len(layers)))
    assert trailing_axes(graph_module, node) == axes  # type: ignore[arg-type]


def test_a_known_shape_tells_it_whatever_the_layers_are() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Identity())
    graph_module, node = value_of(model, "1", torch.randn(2, 3, 6, 5))
    assert trailing_axes(graph_module, node) == 2  # type: ignore[arg-type]
