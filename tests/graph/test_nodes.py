"""What a node calls, by one name in every dialect, and what it overwrites."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.fx import Graph, GraphModule, Node

from fxreduce.graph.nodes import (
    argument,
    has_hooks,
    implements,
    is_inplace,
    operation,
    shape_of,
    tensor_of,
    write_target,
)

ATEN = torch.ops.aten


def called(target: Any, *more: Any, **kwargs: Any) -> tuple[GraphModule, Node]:
    """A graph with one call on its input."""
    graph = Graph()
    x = graph.placeholder("x")
    create = graph.call_method if isinstance(target, str) else graph.call_function
    if getattr(operator, getattr(target, "__name__", ""), None) is target and not more:
        more = (x,)  # most of Python's operators take two
    node = create(target, (x, *more), kwargs)
    graph.output(node)
    return GraphModule({}, graph), node


def mine(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (torch.relu, "relu"),
        (F.relu, "relu"),
        ("relu", "relu"),
        (ATEN.relu.default, "relu"),
        (torch.relu_, "relu_"),
        (ATEN.relu_.default, "relu_"),
        (F.gelu, "gelu"),
        (F.conv2d, "conv2d"),
        (ATEN.conv2d.default, "conv2d"),
        (operator.add, "add"),
        (operator.iadd, "add_"),
        (operator.truediv, "div"),
        (operator.itruediv, "div_"),
        ("__iand__", "bitwise_and_"),
        (operator.and_, "bitwise_and"),
        (operator.ior, "bitwise_or_"),
        (operator.getitem, "getitem"),
        (mine, None),
        (len, None),
    ],
)
def test_a_call_has_one_name_in_every_dialect(target: Any, name: str | None) -> None:
    assert operation(called(target)[1]) == name
    assert operation(called(getattr, "shape")[1]) is None


@pytest.mark.parametrize(
    "target",
    [torch.relu_, "relu_", ATEN.add_.Tensor, operator.iadd, operator.iand, operator.ipow, F.elu_],
)
def test_a_trailing_underscore_overwrites_the_first_argument(target: Any) -> None:
    graph_module, node = called(target)
    assert is_inplace(graph_module, node)
    assert write_target(graph_module, node) is node.args[0]


@pytest.mark.parametrize(
    "target",
    [torch.relu, "relu", "__and__", operator.and_, operator.or_, operator.is_, operator.not_, mine],
)
def test_pythons_own_underscores_overwrite_nothing(target: Any) -> None:
    graph_module, node = called(target)
    assert not is_inplace(graph_module, node)
    assert write_target(graph_module, node) is None


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "inplace"),
    [
        (F.relu, (), {"inplace": True}, True),
        (F.relu, (True,), {}, True),
        (F.relu, (False,), {}, False),
        (F.leaky_relu, (0.1, True), {}, True),
        (F.leaky_relu, (0.1,), {}, False),
        (F.hardtanh, (-1, 1), {"inplace": True}, True),
    ],
)
def test_the_inplace_flag_is_read_by_name_and_by_place(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool
) -> None:
    assert is_inplace(*called(function, *args, **kwargs)) is inplace


def test_out_is_what_is_overwritten_not_the_first_argument() -> None:
    graph = Graph()
    x, out = graph.placeholder("x"), graph.placeholder("out")
    node = graph.call_function(torch.add, (x, 1), {"out": out})
    assert write_target(GraphModule({}, graph), node) is out


@pytest.mark.parametrize("target", [operator.setitem, "__setitem__"])
def test_an_item_assignment_overwrites_its_target_but_returns_nothing_of_it(target: Any) -> None:
    graph_module, node = called(target, 0, 1.0)
    assert write_target(graph_module, node) is node.args[0]
    assert not is_inplace(graph_module, node)


def test_an_argument_is_found_by_place_by_name_or_by_default() -> None:
    node = called(F.leaky_relu, 0.3, inplace=True)[1]
    assert argument(node, 1, "negative_slope") == 0.3
    assert argument(node, 2, "inplace", False) is True
    assert argument(node, 3, "missing", "default") == "default"


def test_parameters_and_buffers_are_found_at_any_depth() -> None:
    norm = nn.Sequential(nn.BatchNorm1d(3))
    graph = Graph()
    weight, mean = (graph.get_attr(f"0.{name}") for name in ("weight", "running_mean"))
    graph.output((weight, mean))
    graph_module = GraphModule(norm, graph)
    assert tensor_of(graph_module, weight) is norm[0].weight
    assert tensor_of(graph_module, mean) is norm[0].running_mean
    assert tensor_of(graph_module, 3) is None
    assert tensor_of(graph_module, called(mine)[1]) is None


def test_a_parametrised_module_implements_its_base_and_a_patched_one_does_not() -> None:
    linear = nn.Linear(2, 2)
    assert implements(linear, nn.Linear, ("forward",))
    assert not implements(linear, nn.Conv2d, ("forward",))
    assert implements(
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear, ("forward",)
    )
    linear.forward = lambda x: x  # type: ignore[method-assign]
    assert not implements(linear, nn.Linear, ("forward",))


def test_hooks_are_seen_before_and_after_the_call() -> None:
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        module = nn.ReLU()
        assert not has_hooks(module)
        handle = getattr(module, register)(lambda *args: None)
        assert has_hooks(module)
        handle.remove()
        assert not has_hooks(module)


def test_a_shape_is_known_from_a_run_or_from_the_export() -> None:
    node = called(mine)[1]
    assert shape_of(node) is None
    node.meta["val"] = torch.empty(2, 3, device="meta")
    assert shape_of(node) == (2, 3)
    node.meta["fxreduce.shape"] = (4, 5)
    assert shape_of(node) == (4, 5)
    assert shape_of(3) is None
