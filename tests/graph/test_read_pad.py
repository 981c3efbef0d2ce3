"""Padding with zeros is read, in each dialect, as the operator that it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import calling, read_operators, refusals
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.affine import read_affine
from fxreduce.graph.capture import capture
from fxreduce.graph.count import Count, count_affine
from fxreduce.operators.affine import Conv

SIZES = {1: (5,), 2: (5, 4), 3: (3, 4, 2)}
UNKNOWN = "nothing tells how many channels it pads; capture the model with example inputs"


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("rank", "function"),
    [
        (1, nn.ZeroPad1d(2)),
        (2, nn.ZeroPad2d((1, 0, 2, 3))),
        (3, nn.ZeroPad3d((1, 2, 0, 0, 3, 1))),
        (1, nn.ConstantPad1d((0, 1), 0.0)),
        (2, nn.ConstantPad2d(1, 0)),
        (3, nn.ConstantPad3d(1, 0.0)),
        (1, lambda x: F.pad(x, (1, 2))),
        (2, lambda x: F.pad(x, (1, 2))),
        (2, lambda x: F.pad(x, (0, 1, 2, 0), "constant", 0)),
        (2, lambda x: F.pad(input=x, pad=[1, 1, 1, 1], mode="constant", value=0.0)),
        (3, lambda x: F.pad(x, (1, 1, 0, 0, 2, 0))),
    ],
)
def test_a_pad_is_read_in_each_dialect(rank: int, function: Callable[[Tensor], Tensor]) -> None:
    x, model = torch.randn(2, 4, *SIZES[rank]), Calls(function).eval()
    exported = export(model, (x,))
    for graph_module in (
        capture(model, x),
        capture(exported),
        capture(exported.run_decompositions()),
    ):
        (operator,) = read_operators(graph_module, x)
        assert isinstance(operator, Conv)
        assert operator.groups == operator.in_channels == 4


def test_a_pad_that_crops_or_of_unknown_channels_is_refused_with_the_reason() -> None:
    assert refusals(calling(nn.ZeroPad2d(1))) == {"op": UNKNOWN}
    assert list(refusals(capture(Calls(lambda x: F.pad(x, (1, 1))).eval())).values()) == [UNKNOWN]
    crops = capture(nn.Sequential(nn.ZeroPad1d((2, -1))).eval(), torch.randn(1, 2, 5))
    assert list(refusals(crops).values()) == ["it crops: by a padding of (2, -1)"]


@pytest.mark.parametrize(
    "function",
    [
        nn.ConstantPad2d(1, 0.5),
        nn.ReflectionPad2d(1),
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: F.pad(x, (1, 1, 1, 1), "replicate"),
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
        lambda x: F.pad(x, (0, x.shape[1])),
    ],
)
def test_what_pads_other_values_or_channels_is_opaque(function: Callable[[Tensor], Tensor]) -> None:
    graph_module = capture(Calls(function).eval(), torch.randn(1, 2, 5, 5))
    assert not any(read_affine(graph_module, node) for node in graph_module.graph.nodes)


def test_pads_are_not_counted() -> None:
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 5, 3), nn.ZeroPad2d(-1))
    graph_module = capture(model.eval(), torch.randn(1, 3, 8, 8))
    assert count_affine(graph_module) == Count(1, 64 * 135)
