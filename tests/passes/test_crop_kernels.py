"""Two padded convolutions become one with the middle of their kernel, of the same output size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

import fxreduce
from fxreduce.graph.modules import BorderedConv
from fxreduce.graph.shapes import propagate_shapes
from fxreduce.graph.values import VALUE, name_values
from fxreduce.operators.cost import FlopsCost
from fxreduce.passes.crop_kernels import CropKernels, dearer
from fxreduce.passes.fuse_padded import Pair, match


def captured(model: nn.Module, size: int = 11) -> GraphModule:
    graph_module = fxreduce.capture(model.eval())
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    x = torch.zeros(2, conv.in_channels, size, size, dtype=conv.weight.dtype)
    propagate_shapes(graph_module, lambda module: module(x))
    name_values(graph_module)
    return graph_module


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in layers:
        layer.reset_parameters()
    return nn.Sequential(*layers)


GEOMETRIES = list(itertools.product((1, 2), (1, 2), (3, 5), (3, 5)))


@pytest.mark.parametrize(("s1", "s2", "k1", "k2"), GEOMETRIES)
def test_the_output_keeps_its_size_for_every_input(s1: int, s2: int, k1: int, k2: int) -> None:
    model = chain(
        nn.Conv2d(4, 6, k1, s1, padding=k1 // 2), nn.Conv2d(6, 4, k2, s2, padding=k2 // 2)
    )
    result = CropKernels(("1",)).run(captured(model))
    (conv,) = (m for m in result.graph_module.modules() if isinstance(m, nn.Conv2d))
    assert conv.kernel_size == (max(k1, k2),) * 2
    for size in range(9, 20):
        x = torch.randn(1, 4, size, size + 1)
        assert result.graph_module(x).shape == model(x).shape


def test_what_is_left_of_the_kernel_is_its_middle() -> None:
    model = chain(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)).double()
    x = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    x[0, 1, 4, 4] = 1.0
    with torch.no_grad():
        inside = model(x) - model(torch.zeros_like(x))
        result = CropKernels(("1",)).run(captured(model)).graph_module
        seen = result(x) - result(torch.zeros_like(x))
    middle = torch.zeros_like(inside)
    middle[..., 3:6, 3:6] = inside[..., 3:6, 3:6]
    assert torch.allclose(seen, middle, atol=1e-12)
    constant = result(torch.zeros_like(x))
    assert torch.allclose(constant[..., 4, 4], model(torch.zeros_like(x))[..., 4, 4])


def test_three_in_a_row_become_one() -> None:
    model = chain(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    result = CropKernels(("1", "2")).run(captured(model))
    (conv,) = (m for m in result.graph_module.modules() if isinstance(m, nn.Conv2d))
    assert conv.kernel_size == (3, 3)
    (node,) = result.graph_module.graph.find_nodes(op="call_module", target=conv_path(result))
    assert node.meta[VALUE] == "2"


def conv_path(result: object) -> str:
    modules = result.graph_module.named_modules()
    return next(path for path, module in modules if isinstance(module, nn.Conv2d))


def test_a_carried_border_becomes_bias() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    bordered = BorderedConv(first, torch.randn(4, 1, 3, 3), None)
    model = nn.Sequential(bordered, nn.Conv2d(4, 3, 3, padding=1)).eval()
    graph_module = torch.fx.GraphModule(model, Traced().trace(model))
    propagate_shapes(graph_module, lambda module: module(torch.zeros(1, 3, 9, 9)))
    name_values(graph_module)
    result = CropKernels(("1",)).run(graph_module).graph_module
    zeros = torch.zeros(1, 3, 9, 9)
    assert torch.allclose(result(zeros)[..., 4, 4], model(zeros)[..., 4, 4], atol=1e-5)


class Traced(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential)


def test_depthwise_ones_stay_depthwise() -> None:
    model = chain(*(nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2)))
    result = CropKernels(("1",)).run(captured(model)).graph_module
    assert [m.groups for m in result.modules() if isinstance(m, nn.Conv2d)] == [6]


def test_only_named_values_are_touched() -> None:
    model = chain(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)))
    result = CropKernels(()).run(captured(model))
    assert not result.modified


def test_what_is_refused_says_why() -> None:
    reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    result = CropKernels(("1",)).run(captured(chain(nn.Conv2d(4, 4, 3, padding=1), reflecting)))
    assert not result.modified
    (refusal,) = result.refusals
    assert refusal.where == "1"
    assert "reflect padding reads values, not zeros" in refusal.reason


@pytest.mark.parametrize(("between", "pays"), [(2, False), (32, True)])
def test_it_pays_where_one_costs_less_than_two(between: int, pays: bool) -> None:
    layers = (nn.Conv2d(32, between, 3, padding=1), nn.Conv2d(between, 32, 3, padding=1))
    graph_module = captured(chain(*layers))
    (node,) = graph_module.graph.find_nodes(op="call_module", target="1")
    pair = match(graph_module, node)
    assert isinstance(pair, Pair)
    refusal = dearer(pair, FlopsCost())
    assert (refusal is None) is pays
    assert pays or "does not pay" in refusal.reason


def test_what_others_read_stays() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            return functional.relu(y) + self.two(y)

    assert not CropKernels(("two",)).run(captured(Both())).modified
