"""Shapes, graph breaks, and what inner backends and callers get."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config
from torch.fx import Graph, GraphModule

import fxreduce
from fxreduce.dynamo.lift import lift
from tests.backend.compiling import Broken, Inner, calls, image, network
from tests.checks import assert_close, randomised

pytestmark = pytest.mark.usefixtures("no_grad")


class Stock:
    """The inner backend without fxreduce, to count against."""

    def __init__(self, name: str) -> None:
        self.inner = Inner(name)

    def compilations(self, model: nn.Module, inputs: Sequence[Tensor], **options: Any) -> int:
        compiled = torch.compile(model, backend=self.inner, **options)
        for x in inputs:
            compiled(x)
        return self.inner.compilations


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    "inputs",
    [[image(n) for n in (1, 2, 3, 7)], [image(2, n) for n in (6, 7, 9, 12)]],
    ids=["batch", "size"],
)
def test_sizes_may_change_as_often_as_without_fxreduce(
    inputs: list[Tensor], dynamic: bool | None, inner: Inner
) -> None:
    model = network()
    compiled = torch.compile(model, backend=fxreduce.backend(inner), dynamic=dynamic)
    for x in inputs:
        assert_close(model(x), compiled(x))
    merged = inner.compilations
    assert all(calls(graph)["batch_norm"] == 0 for graph in inner.graphs)
    torch._dynamo.reset()
    assert merged == Stock(inner.name).compilations(network(), inputs, dynamic=dynamic)


def test_the_log_says_what_was_merged_and_what_was_not(caplog: pytest.LogCaptureFixture) -> None:
    apart = (nn.Linear(4, 2), nn.Linear(2, 64))
    wide = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4), nn.ReLU(), *apart)
    with caplog.at_level(logging.DEBUG, "fxreduce"):
        torch.compile(wide, backend=fxreduce.backend(Inner()))(torch.rand(2, 4))
    said = [record.message for record in caplog.records if record.name == "fxreduce"]
    assert re.fullmatch(r"a graph is merged: \d+ nodes become \d+", said[0])
    assert any(re.search(r"left undone: .*fuse_chain.*merging does not pay", each) for each in said)


def test_nothing_depends_on_the_batch_size() -> None:
    codes = set()
    for batch in (1, 2, 5):
        inner = Inner()
        torch.compile(network(), backend=fxreduce.backend(inner), dynamic=False)(image(batch))
        codes.add(inner.graphs[0].code)
    assert len(codes) == 1


def test_another_eps_is_another_batch_norm(inner: Inner) -> None:
    """With dynamic shapes a batch-norm's eps is an input of the graph."""
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner), dynamic=True)
    assert_close(model(x), compiled(x))
    model.blocks[0].norm.eps = 0.5
    assert_close(model(x), compiled(x))
    model.blocks[0].norm.eps = 1e-5
    assert_close(model(x), compiled(x))


def test_an_eps_that_no_guard_watches_is_compared_at_every_call() -> None:
    model, x, inner = network(), image(), Inner()
    graphs: list[tuple[GraphModule, list[Any]]] = []

    def keep(graph_module: GraphModule, inputs: list[Any]) -> Any:
        graphs.append((graph_module, list(inputs)))
        return fxreduce.backend(inner)(graph_module, inputs)

    torch.compile(model, backend=keep, dynamic=True)(x)
    graph_module, inputs = graphs[-1]
    run = fxreduce.backend(inner)(graph_module, inputs)
    names = [node.name for node in graph_module.graph.find_nodes(op="placeholder")]
    inputs = [int(each) if isinstance(each, torch.SymInt) else each for each in inputs]
    places = [place for place, name in enumerate(names) if name.endswith("norm_eps")]
    if not places:
        pytest.skip("torch.compile of this version makes eps a constant of the graph")
    (place, *_) = places
    inputs[place] = torch.tensor(0.5, dtype=torch.float64)
    assert_close(graph_module(*inputs), run(*inputs))


def test_a_graph_break_splits_the_merging_and_nothing_else(inner: Inner) -> None:
    model, x = randomised(Broken()), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    for _ in range(2):
        assert_close(model(x), compiled(x))
        model.last.conv.weight.mul_(1.5)
    assert [calls(graph)["batch_norm"] for graph in inner.graphs] == [0, 0]


def test_a_graph_with_nothing_to_merge_goes_on_as_it_is() -> None:
    seen: list[GraphModule] = []

    def keep(graph_module: GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph_module)
        return graph_module.forward

    def outer(graph_module: GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph_module)
        return fxreduce.backend(keep)(graph_module, inputs)

    x = torch.rand(2, 3)
    for model in (nn.Linear(3, 3), nn.ReLU()):
        seen.clear()
        assert torch.equal(model(x), torch.compile(model, backend=outer)(x))
        assert seen[0] is seen[1]


def test_a_graph_with_nothing_to_merge_has_a_report_which_says_why(inner: Inner) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)).eval()
    compiled, x = torch.compile(model, backend=fxreduce.backend(inner)), torch.rand(2, 4)
    compiled(x)
    gc.collect()
    report = fxreduce.report(compiled)
    assert (report.operators_before, report.operators_after) == (2, 2)
    assert report.removed == ()
    del compiled
    with torch.enable_grad():
        compiled = torch.compile(model, backend=fxreduce.backend(inner))
        compiled(x)
        assert "gradients are enabled" in str(fxreduce.report(compiled))


def test_the_graph_of_torch_compile_is_not_changed_and_a_tuple_comes_back(inner: Inner) -> None:
    returned: list[Any] = []

    def outer(graph_module: GraphModule, inputs: list[Any]) -> Any:
        before = graph_module.code, [dict(node.meta) for node in graph_module.graph.nodes]
        run = fxreduce.backend(inner)(graph_module, inputs)
        after = graph_module.code, [dict(node.meta) for node in graph_module.graph.nodes]
        assert before == after

        def call(*args: Any) -> Any:
            returned.append(run(*args))
            return returned[-1]

        return call

    model, x = network(), image()
    assert_close(model(x), torch.compile(model, backend=outer)(x))
    assert isinstance(returned[0], (tuple, list))
    assert inner.calls()["batch_norm"] == 0


def test_a_constant_that_is_returned_is_a_copy() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.output((x, graph.get_attr("constant")))
    lifted = lift(GraphModule({"constant": torch.zeros(2)}, graph), {"x": 0}, {})
    first = lifted.graph_module(torch.ones(2), *lifted.folded)[1]
    first.add_(1)
    assert torch.equal(lifted.graph_module(torch.ones(2), *lifted.folded)[1], torch.zeros(2))


def test_a_buffer_that_the_graph_overwrites_stays_an_input(inner: Inner) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(4))
            self.register_buffer("view", self.scale.view(4))
            self.linear = nn.Linear(4, 4)
            self.more = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.scale.add_(1)
            return self.more(self.linear(x * self.scale * self.view))

    models = [Counting(), Counting()]
    models[1].load_state_dict(models[0].state_dict())
    compiled, x = torch.compile(models[0], backend=fxreduce.backend(inner)), torch.rand(3, 4)
    for _ in range(3):
        assert_close(models[1](x), compiled(x), 1e-5)
    assert inner.compilations == 1
    assert inner.calls()["linear"] == 1


def test_an_input_is_overwritten_as_the_model_does(inner: Inner) -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = nn.functional.relu(x, inplace=True)
            return self.norm(self.conv(x)).add_(1), x

    model, x = randomised(Overwriting()), image() - 0.5
    y = x.clone()
    assert_close(model(x), torch.compile(model, backend=fxreduce.backend(inner))(y))
    assert torch.equal(x, y)
    assert inner.calls() == {"relu": 1, "conv2d": 1}


def test_tied_weights_are_one_input(inner: Inner) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model, x = Tied().double(), torch.rand(3, 4, dtype=torch.float64)
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    for _ in range(3):
        assert_close(model(x), compiled(x))
        model.first.weight.mul_(2)
    assert inner.calls()["linear"] == 1


def test_a_compiled_model_inside_a_compiled_function_is_one_graph(inner: Inner) -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))

    @torch.compile(backend=fxreduce.backend(inner))
    def twice(x: Tensor) -> Tensor:
        return compiled(x) * 2

    for _ in range(2):
        assert_close(model(x) * 2, twice(x))
        model.head.weight.mul_(1.5)
    assert inner.compilations == 1
    assert inner.calls()["batch_norm"] == 0


@pytest.mark.parametrize("freeze", [False, True])
def test_weights_that_the_graph_holds_are_merged_as_well(freeze: bool, inner: Inner) -> None:
    """With inductor's freezing torch.compile makes them attributes, whatever the backend."""
    model, x = network(), image()
    with config.patch(freezing=True), torch.backends.mkldnn.flags(enabled=False):
        compiled = torch.compile(model, backend=fxreduce.backend(inner, freeze=freeze))
        for _ in range(2):
            assert_close(model(x), compiled(x))
        assert fxreduce.report(compiled).parameters.keys() == dict(model.named_parameters()).keys()
        model.blocks[1].conv.weight.mul_(2)
        if freeze:
            with pytest.raises(fxreduce.WeightsChangedError, match=r"blocks\.1\.conv\.weight"):
                compiled(x)
        else:
            assert_close(model(x), compiled(x))
    assert inner.compilations == 1
    assert inner.calls()["batch_norm"] == 0
