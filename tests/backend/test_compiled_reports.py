"""Reports of compiled models: they hold what other reports hold, for each graph."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.report.compiled import CompiledReport
from tests.backend.compiling import Broken, Inner, image, network
from tests.checks import randomised

pytestmark = pytest.mark.usefixtures("no_grad")


def reported(model: nn.Module, x: Tensor, **options: object) -> CompiledReport:
    compiled = torch.compile(model, backend=fxreduce.backend(Inner(), **options))
    compiled(x)
    report = fxreduce.report(compiled)
    assert isinstance(report, CompiledReport)
    return report


def test_parameters_went_where_fuse_puts_them() -> None:
    model, x = network(), image()
    report, fused = reported(model, x), fxreduce.report(fxreduce.fuse(model, example_inputs=x))
    assert set(report.parameters) == {name for name, _ in model.named_parameters()}
    assert report.parameters["head.weight"] == ("head.weight",)  # nothing touched it
    merged = {name: len(went) for name, went in report.parameters.items()}
    assert merged == {name: len(went) for name, went in fused.parameters.items()}
    bias = set(report.parameters["blocks.0.norm.bias"])
    assert bias == set(report.parameters["blocks.0.conv.weight"])
    assert bias.isdisjoint(report.parameters["blocks.1.norm.bias"])


def test_the_graphs_are_those_before_and_after_merging() -> None:
    report = reported(network(), image())
    (graph,) = report.graphs
    before, after = (
        [node for node in view.nodes if node.kind == "affine"]
        for view in (graph.graph_before, graph.graph_after)
    )
    assert (len(before), len(after)) == (report.operators_before, report.operators_after)
    assert all(node.shape is not None for node in before)
    origins = {origin for node in after for origin in node.origins}
    assert origins <= {node.label for node in before}
    assert len(report.merged) == 4
    assert report.merged == graph.merged


def test_the_page_has_a_section_for_each_graph() -> None:
    html = reported(randomised(Broken()), image()).to_html()
    assert html.count("<svg") == 4
    assert '<section id="graph-1">' in html
    assert '<section id="graph-2">' in html
    html = reported(network(), image()).to_html()
    assert html.count("<svg") == 2
    assert '<section id="graph">' in html


def test_as_json_every_graph_has_the_fields_of_the_whole() -> None:
    content = json.loads(reported(randomised(Broken()), image()).to_json())
    first, last = content.pop("graphs")
    assert content.pop("schema") == 1
    assert set(first) == set(last) == set(content)
    assert content["parameters"] == first["parameters"] | last["parameters"]
    assert first["merged"]
    assert not any(key.startswith("graph_") for key in first)


def test_a_graph_that_runs_as_it_is_is_drawn_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)).eval()
    report = reported(model, torch.rand(2, 4))
    (graph,) = report.graphs
    assert graph.graph_before == graph.graph_after
    assert report.parameters == {name: (name,) for name, _ in model.named_parameters()}


def test_other_batches_of_the_same_graph_are_reported_once() -> None:
    model, inner = network(), Inner()
    compiled = torch.compile(model, backend=fxreduce.backend(inner), dynamic=False)
    for batch in (2, 3):
        compiled(image(batch))
    assert inner.compilations == 2
    assert len(fxreduce.report(compiled).graphs) == 1


def test_a_report_keeps_no_weights_alive() -> None:
    model = network()
    report = reported(model, image())
    weights = [weakref.ref(each) for each in model.parameters()]
    del model
    gc.collect()
    assert report.graphs[0].graph_before.nodes
    assert all(each() is None for each in weights)
