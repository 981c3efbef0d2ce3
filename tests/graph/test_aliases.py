"""Which values share memory, and what an in-place node reaches; torch itself is the judge."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, symbolic_trace

from fxreduce.graph.aliases import Aliases
from fxreduce.graph.modules import BorderedConv, ChannelAffine

ATEN = torch.ops.aten


def call(target: Any, *args: Any, **kwargs: Any) -> tuple[GraphModule, Node, Node]:
    """A graph with one call on its input, the call and the input."""
    graph = Graph()
    x = graph.placeholder("x")
    if isinstance(target, nn.Module):
        node = graph.call_module("op", (x, *args))
    else:
        create = graph.call_method if isinstance(target, str) else graph.call_function
        node = create(target, (x, *args), kwargs)
    graph.output(node)
    return GraphModule({"op": target} if isinstance(target, nn.Module) else {}, graph), node, x


VIEWS: list[tuple[Any, ...]] = [
    ("view", 6, 2),
    ("reshape", -1),
    ("permute", 1, 0, 2),
    ("transpose", 0, 1),
    ("flatten",),
    ("expand", 2, 3, 2),
    ("unsqueeze", 0),
    ("squeeze",),
    ("chunk", 1),
    ("contiguous",),
    ("to", torch.float32),
    ("float",),
    ("detach",),
    ("narrow", 0, 0, 1),
    ("relu_",),
    (torch.flatten,),
    (torch.atleast_2d,),
    (torch.relu_,),
    (operator.getitem, 0),
    (operator.getitem, (slice(None), 0)),
    (getattr, "T"),
    (getattr, "data"),
    (F.dropout, 0.5, False),
    (F.dropout2d, 0.5, False),
    (F.feature_alpha_dropout, 0.5, False),
    (F.relu, True),
    (ATEN.view.default, [12]),
    (ATEN.permute.default, [0, 2, 1]),
    (ATEN.relu_.default,),
    (ATEN.dropout.default, 0.5, False),
    (nn.Identity(),),
    (nn.Flatten(),),
    (nn.Dropout().eval(),),
    (nn.ReLU(inplace=True),),
]
FRESH: list[tuple[Any, ...]] = [
    ("relu",),
    ("clone",),
    ("add", 1),
    ("mean",),
    ("size",),
    (torch.relu,),
    (F.gelu,),
    (F.relu, False),
    (operator.add, 1),
    (operator.mul, 2),
    (operator.truediv, 2),
    (operator.and_, True),
    (getattr, "shape"),
    (torch.cat,),
    (ATEN.add.Tensor, 1),
    (ATEN.relu.default,),
    (nn.ReLU(),),
    (nn.Linear(2, 2),),
    (nn.Conv1d(3, 3, 1),),
    (nn.BatchNorm1d(3).eval(),),
    (nn.MaxPool1d(1),),
    (ChannelAffine(torch.ones(2), torch.ones(2), 0),),
    (BorderedConv(nn.Conv1d(3, 3, 1), torch.ones(3, 1, 1), None),),
]


def title(given: tuple[Any, ...]) -> str:
    target = given[0]
    if isinstance(target, nn.Module):
        return type(target).__name__
    return str(getattr(target, "__name__", target))


@pytest.mark.parametrize("given", VIEWS, ids=title)
def test_a_view_shares_memory_with_what_it_views(given: tuple[Any, ...]) -> None:
    graph_module, node, x = call(*given)
    assert Aliases(graph_module).share_memory(node, x)


@pytest.mark.parametrize("given", FRESH, ids=title)
def test_a_computed_value_has_memory_of_its_own(given: tuple[Any, ...]) -> None:
    graph_module, node, x = call(*given)
    assert not Aliases(graph_module).share_memory(node, x)


@pytest.mark.parametrize("given", FRESH, ids=title)
def test_torch_agrees_that_the_memory_is_its_own(given: tuple[Any, ...]) -> None:
    target, *rest = given
    x = torch.randn(2, 3, 2)
    if target in (torch.cat, operator.and_):
        return
    value = getattr(x, target)(*rest) if isinstance(target, str) else target(x, *rest)
    if isinstance(value, Tensor):
        assert value.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_a_function_from_outside_torch_may_return_anything() -> None:
    graph_module, node, x = call(lambda x: x)
    assert Aliases(graph_module).share_memory(node, x)


def traced(function: Callable[[Tensor], Any]) -> tuple[Aliases, dict[str, Node]]:
    graph_module = symbolic_trace(function)
    return Aliases(graph_module), {node.name: node for node in graph_module.graph.nodes}


def test_sharing_is_carried_along_views_and_stops_at_computation() -> None:
    aliases, at = traced(lambda x: (x + 1).flatten(1)[0].relu().view(-1))
    assert aliases.share_memory(at["add"], at["getitem"])
    assert not aliases.share_memory(at["x"], at["add"])
    assert not aliases.share_memory(at["getitem"], at["relu"])
    assert aliases.share_memory(at["relu"], at["view"])


def test_an_in_place_sum_shares_memory_with_the_summand_that_it_overwrites_alone() -> None:
    aliases, at = traced(lambda x: (x + 1).add_(other := x * 2).relu() + other)
    assert aliases.share_memory(at["add"], at["add_"])
    assert not aliases.share_memory(at["mul"], at["add_"])


def test_an_in_place_node_reaches_the_callers_tensor_and_what_is_read_later() -> None:
    aliases, at = traced(lambda x: x.relu_())
    assert aliases.others_see(at["relu_"]) == [at["x"]]

    def on_view(x: Tensor) -> Tensor:
        y = x + 1
        y.view(-1).relu_()
        return y

    aliases, at = traced(on_view)
    assert aliases.others_see(at["relu_"]) == [at["add"]]
    aliases, at = traced(lambda x: (x + 1).flatten(1).relu_() * 2)
    assert aliases.others_see(at["relu_"]) == []
    assert aliases.others_see(at["mul"]) == []


def test_a_value_overwritten_between_two_nodes_is_told_from_one_overwritten_elsewhere() -> None:
    def function(x: Tensor) -> Tensor:
        y = x + 1
        first = y * 2
        y.relu_()
        second = y * 3
        return first + second

    aliases, at = traced(function)
    assert aliases.overwritten_between(at["add"], at["mul"], at["mul_1"])
    assert not aliases.overwritten_between(at["add"], at["mul_1"], at["add_1"])
    assert not aliases.overwritten_between(at["mul"], at["mul"], at["add_1"])
    assert aliases.overwritten(at["add"]) is at["relu_"]
    assert aliases.overwritten(at["mul"]) is None


def test_a_value_is_private_to_its_only_reader_where_nothing_shares_its_memory() -> None:
    aliases, at = traced(lambda x: (x + 1).relu() * 2)
    assert aliases.is_private(at["add"], at["relu"])
    assert not aliases.is_private(at["x"], at["add"])
    aliases, at = traced(lambda x: (x + 1).view(-1).relu() * 2)
    assert not aliases.is_private(at["view"], at["relu"])


def test_two_readings_of_one_buffer_share_memory_and_an_overwritten_one_is_no_constant() -> None:
    graph = Graph()
    x, first, second = graph.placeholder("x"), graph.get_attr("scale"), graph.get_attr("scale")
    write = graph.call_method("add_", (first, 1))
    product = graph.call_function(torch.mul, (x, second))
    other = graph.call_function(torch.mul, (x, graph.get_attr("fixed")))
    graph.output((product, other))
    tensors = nn.Module()
    tensors.register_buffer("scale", torch.ones(3))
    tensors.register_buffer("fixed", torch.ones(3))
    aliases = Aliases(GraphModule(tensors, graph))
    assert aliases.share_memory(first, second)
    assert aliases.changed_constant(product) is second
    assert aliases.changed_constant(other) is None
    assert aliases.others_see(write) == [first, second]
