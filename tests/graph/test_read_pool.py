"""Mean poolings are read, in each dialect, as the operators that they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, calling, read_operators, refusals
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.capture import capture
from fxreduce.graph.count import Count, count_affine
from fxreduce.operators.affine import Conv, apply
from tests.versions import since

SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
UNKNOWN = "nothing tells how many channels it pools; capture the model with example inputs"
POOLS = [
    (1, nn.AvgPool1d(3)),
    (1, nn.AvgPool1d(3, 2, 1)),
    (2, nn.AvgPool2d(2)),
    (2, nn.AvgPool2d((3, 2), (1, 2), (1, 0))),
    (2, nn.AvgPool2d(3, 2, 1, count_include_pad=False, divisor_override=7)),
    (2, nn.AvgPool2d(3, 2, count_include_pad=False)),
    (3, nn.AvgPool3d(2, (1, 2, 1), 1)),
]
FUNCTIONS: list[tuple[int, Callable[[Tensor], Tensor]]] = [
    (1, lambda x: F.avg_pool1d(x, 3)),
    (1, lambda x: torch.avg_pool1d(x, 3, 2, 1, count_include_pad=True)),
    (2, lambda x: F.avg_pool2d(x, 2)),
    (2, lambda x: F.avg_pool2d(input=x, kernel_size=(3, 2), stride=(1, 2), padding=(1, 0))),
    (2, lambda x: F.avg_pool2d(x, 3, 1, 1, False, False, 5)),
    (3, lambda x: F.avg_pool3d(x, (2, 1, 2), 1)),
]


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(("rank", "function"), [*POOLS, *FUNCTIONS])
def test_a_pooling_is_read_in_each_dialect(rank: int, function: Callable[[Tensor], Tensor]) -> None:
    x, model = torch.randn(2, 4, *SIZES[rank]), Calls(function).eval()
    for graph_module in (capture(model, x), capture(export(model, (x,)))):
        (operator,) = read_operators(graph_module, x)
        assert isinstance(operator, Conv)
        assert operator.groups == operator.in_channels == 4


def test_an_image_without_a_batch_axis_tells_its_channels_too() -> None:
    x = torch.randn(3, 6, 8)
    graph_module = capture(nn.Sequential(nn.AvgPool2d(2)).eval(), x)
    call = read_affine(graph_module, next(iter(graph_module.graph.find_nodes(op="call_module"))))
    assert isinstance(call, AffineCall)
    assert call.operator.in_channels == 3
    assert call.like is None
    assert_close(graph_module(x), apply(call.operator, x[None].double())[0].float(), 1e-6)


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (nn.AvgPool2d(2, ceil_mode=True), "its last window may reach beyond the padding"),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "its windows leave out the padding"),
        (nn.AvgPool2d(2), UNKNOWN),
    ],
)
def test_a_pooling_that_is_no_convolution_is_refused_with_the_reason(
    pool: nn.Module, reason: str
) -> None:
    (seen,) = refusals(calling(pool)).values()
    assert reason in seen


def test_an_input_with_another_number_of_axes_tells_no_channels() -> None:
    graph_module = capture(nn.Sequential(nn.AvgPool1d(2)).eval(), torch.randn(2, 3, 8))
    graph_module.graph.find_nodes(op="placeholder")[0].meta.clear()
    assert list(refusals(graph_module).values()) == [UNKNOWN]


@since((2, 9), "avg_pool2d takes no traced sizes")
def test_a_window_that_the_graph_computes_and_a_forward_of_its_own_are_opaque() -> None:
    class Own(nn.AvgPool2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    whole = capture(Calls(lambda x: F.avg_pool2d(x, (x.shape[2], 1))).eval())
    for graph_module in (whole, calling(Own(2))):
        assert not any(read_affine(graph_module, node) for node in graph_module.graph.nodes)


def test_poolings_are_not_counted_whether_they_can_be_merged_or_not() -> None:
    model = nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(3, 5, 1), nn.AvgPool2d(2, ceil_mode=True), nn.BatchNorm2d(5)
    )
    graph_module = capture(model.eval(), torch.randn(1, 3, 8, 8))
    assert count_affine(graph_module) == Count(2, 16 * 15)
