"""Who reads an overwritten tensor reads the result of what overwrote it."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fxreduce.graph.capture import capture
from fxreduce.passes.single_assignment import SingleAssignment


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x + 0)


def returns_the_overwritten(y: Tensor) -> Tensor:
    z = torch.relu_(y)
    return y + z


def reads_before_and_after(y: Tensor) -> Tensor:
    before = y * 2
    F.relu(y, inplace=True)
    after = y * 3
    y.add_(1)
    return before + after + y


def overwrites_through_a_view(y: Tensor) -> Tensor:
    y.view(-1).relu_()
    return y


def by_keyword(y: Tensor) -> Tensor:
    F.relu(input=y, inplace=True)
    return y


def into_out(y: Tensor) -> Tensor:
    z = torch.empty_like(y)
    torch.add(y, 1, out=z)
    return y * z


def combines_masks(y: Tensor) -> Tensor:
    low, high = y > 0, y < 1
    both = low & high
    return low * 2 + both * 3 + (low | high) * 5 + high * 7


FUNCTIONS = [
    (returns_the_overwritten, 1),
    (reads_before_and_after, 2),
    (overwrites_through_a_view, 0),
    (by_keyword, 1),
    (into_out, 1),
    (combines_masks, 0),
]


@pytest.mark.parametrize(("function", "edits"), FUNCTIONS)
def test_values_stay_what_they_are(function: Callable[[Tensor], Tensor], edits: int) -> None:
    model, x = Calls(function).eval(), torch.randn(4, 5)
    result = SingleAssignment().run(capture(model))
    assert [edit.action for edit in result.edits] == ["replaced"] * edits
    assert not result.refusals
    assert_close(model(x), result.graph_module(x), 0)


def test_before_y_plus_relu_of_y_after_twice_the_relu() -> None:
    result = SingleAssignment().run(capture(Calls(returns_the_overwritten).eval()))
    *_, relu, total, _ = result.graph_module.graph.nodes
    assert total.args == (relu, relu)
    x = torch.tensor([-1.0, 2.0])
    assert result.graph_module(x).tolist() == [0, 4]


def test_what_returns_none_takes_nobodys_place() -> None:
    graph = Graph()
    y = graph.call_function(torch.add, (graph.placeholder("x"), 1))
    graph.call_function(operator.setitem, (y, 0, 5.0))
    graph.output(y)
    result = SingleAssignment().run(GraphModule({}, graph))
    assert not result.modified
    assert result.graph_module(torch.zeros(2)).tolist() == [5, 1]


def test_without_in_place_calls_nothing_is_done() -> None:
    assert not SingleAssignment().run(capture(nn.Sequential(nn.ReLU(), nn.GELU()).eval())).modified
