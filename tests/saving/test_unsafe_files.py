"""A file cannot make fxreduce run what it likes: names are looked up in lists, never imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import GraphModule, symbolic_trace

import fxreduce
from fxreduce.saving.functions import function_of, functions_called, methods, name_of
from fxreduce.saving.graphs import graph_from_json, graph_to_json
from fxreduce.saving.modules import build


def content() -> dict[str, Any]:
    """A graph of one call: x.sin()."""
    return graph_to_json(symbolic_trace(lambda x: x.sin()))


def test_a_graph_is_read_as_it_was_written() -> None:
    def everything(x: torch.Tensor, y: float = 2.5) -> Any:
        a = torch.cat([x[..., None], x[:, ::1, None].expand(-1, x.shape[1], 1)], dim=-1)
        b = torch.nn.functional.relu(a.to(torch.float64)) * y
        return {"a": (a, b.sum(-1, keepdim=True)), "b": x.new_zeros(2, device="cpu")}

    traced = symbolic_trace(everything)
    written = graph_to_json(traced)
    again = GraphModule({}, graph_from_json(written, {}))
    assert graph_to_json(again) == written
    x = torch.randn(2, 3)
    expected, seen = traced(x), again(x)
    assert torch.equal(seen["a"][1], expected["a"][1])


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "builtins.eval", "builtins.exec", "builtins.open", "torch.load", "torch.save",
        "torch.hub.load", "operator.methodcaller", "operator.call", "torch.from_file",
        "torch.ops.aten.from_file.default", "torch.ops.fbgemm.add.default", "subprocess.run",
        "torch.ops.aten.save.default", "torch.ops.aten", "math.__loader__", "",
    ],
)  # fmt: skip
def test_functions_beyond_arithmetic_are_refused(name: str) -> None:
    with pytest.raises(fxreduce.UnsupportedError, match=r"calls torch's arithmetic, and what the"):
        function_of(name, {})


def test_every_arithmetic_function_is_found_by_its_name() -> None:
    for function in (
        torch.add, torch.cat, torch.nn.functional.relu, torch.nn.functional.interpolate,
        torch.flatten, getattr, torch.ops.aten.relu.default, torch.zeros, abs,
    ):  # fmt: skip
        assert function_of(name_of(function), {}) is function


def test_the_functions_of_the_user_s_model_are_found_by_name() -> None:
    def of_mine(x: torch.Tensor) -> torch.Tensor:
        return x

    graph = torch.fx.Graph()
    graph.output(graph.call_function(of_mine, (graph.placeholder("x"),)))
    library = functions_called(GraphModule({}, graph))
    assert function_of(name_of(of_mine), library) is of_mine


@pytest.mark.parametrize("name", ["numpy", "__reduce__", "tofile", "__class__", "untyped_storage"])
def test_methods_that_leave_torch_are_refused(name: str) -> None:
    assert name not in methods()
    written = content()
    written["nodes"][1]["target"] = name
    with pytest.raises(fxreduce.UnsupportedError, match="calls arithmetic methods alone"):
        graph_from_json(written, {})


INJECTIONS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "a placeholder": lambda nodes: nodes[0].update(target="x, y=print('!')"),
    "a name": lambda nodes: nodes[1].update(name="x\nprint('!')"),
    "a keyword": lambda nodes: nodes[1].update(kwargs={"dict": [["a=print('!'), b", 1]]}),
    "a module": lambda nodes: nodes[1].update(op="call_module", target='a"); print("!'),
    "an attribute": lambda nodes: nodes[1].update(op="get_attr", target="a;print('!')", args=[]),
    "a hidden attribute": lambda nodes: nodes[1].update(
        op="call_function",
        target="builtins.getattr",
        args={"tuple": [{"node": "x"}, "__class__"]},
    ),
}


@pytest.mark.parametrize("injection", INJECTIONS)
def test_a_name_cannot_carry_code(injection: str) -> None:
    written = content()
    INJECTIONS[injection](written["nodes"])
    with pytest.raises(ValueError, match=r"is no (name|path of a module)"):
        graph_from_json(written, {})


@pytest.mark.parametrize("name", ["Module.__init__", "modules", "Small", "os", "parallel"])
def test_modules_of_other_classes_are_refused(name: str) -> None:
    with pytest.raises(fxreduce.UnsupportedError, match=r"is of torch\.nn or of fxreduce; seen"):
        build({"class": name, "arguments": {"dict": []}})


def test_what_a_graph_cannot_hold_is_named() -> None:
    graph = torch.fx.Graph()
    graph.call_function(torch.add, (graph.placeholder("x"), 1j))
    with pytest.raises(fxreduce.UnsupportedError, match=r"add cannot be saved: .*numbers, names"):
        graph_to_json(GraphModule({}, graph))
