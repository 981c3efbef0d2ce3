"""Merging within pipelines of others: inductor's pre-grad passes, and exported programs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config
from torch.fx import Graph, GraphModule

import fxreduce
from tests.backend.compiling import Inner, calls, image, network, photo, stem
from tests.checks import assert_close

pytestmark = pytest.mark.usefixtures("no_grad")
MERGED = {"relu": 2, "add": 2, "mean": 1, "linear": 1}  # and four convolutions, as modules


def exported(model: nn.Module, x: Tensor) -> GraphModule:
    return torch.export.export(model, (x,)).module()


def noting(seen: list[GraphModule]) -> Callable[[Graph], None]:
    """The pass, with the modules that it was given kept."""
    merge = fxreduce.pre_grad_pass()

    def run(graph: Graph) -> None:
        merge(graph)
        seen.append(graph.owning_module)

    return run


def merged_calls(graph_module: GraphModule) -> dict[str, int]:
    return {name.rstrip("_"): count for name, count in calls(graph_module).items()}


def class_name(module: nn.Module) -> str:
    return type(module).__name__


def test_a_graph_that_holds_its_weights_is_merged_in_place() -> None:
    model, x = network(), image()
    program = exported(model, x)
    fxreduce.pre_grad_pass()(program.graph)
    program.graph.lint()
    program.recompile()
    assert_close(model(x), program(x))
    seen = merged_calls(program)
    assert "batch_norm" not in seen
    convolutions = [each for each in program.modules() if isinstance(each, nn.Conv2d)]
    assert len(convolutions) == 4


def test_disabled_passes_and_nothing_to_merge_leave_the_graph_as_it_is() -> None:
    x = torch.rand(2, 4, dtype=torch.float64)
    alone = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
    pair = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4)).double()
    for model, disable in ((alone, ()), (pair, ["fuse_chain"])):
        program = exported(model, x)
        before = [(node, node.args) for node in program.graph.nodes]
        fxreduce.pre_grad_pass(disable=disable)(program.graph)
        assert [(node, node.args) for node in program.graph.nodes] == before


def test_weights_that_are_inputs_stay_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, x, inner = network(), image(), Inner()

    def backend(graph_module: GraphModule, inputs: list[Any]) -> Any:
        fxreduce.pre_grad_pass()(graph_module.graph)
        return inner(graph_module, inputs)

    with caplog.at_level(logging.INFO, "fxreduce"):
        assert_close(model(x), torch.compile(model, backend=backend)(x))
    assert inner.calls()["batch_norm"] == 2
    (said,) = (record.message for record in caplog.records if record.name == "fxreduce")
    assert "its weights are inputs" in said
    assert "freezing" in said


def test_gradients_and_autocast_leave_the_graph_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model, x = network(), image()
    program = exported(model, x)
    before = program.code
    with caplog.at_level(logging.INFO, "fxreduce"):
        with torch.enable_grad():
            fxreduce.pre_grad_pass()(program.graph)
        with torch.autocast("cpu", torch.bfloat16):
            fxreduce.pre_grad_pass()(program.graph)
    program.recompile()
    assert program.code == before
    said = [record.message for record in caplog.records if record.name == "fxreduce"]
    assert ["gradients" in said[0], "autocast" in said[1]] == [True, True]


TIMED = pytest.mark.skipif(
    not hasattr(config, "pre_grad_pass_timing"),
    reason="inductor of this version does not let a pass run before its own",
)


@TIMED
def test_inductor_runs_it_where_it_freezes_weights() -> None:
    model, x = network().float(), image().float()  # inductor does not freeze double weights
    seen: list[GraphModule] = []
    with config.patch(
        freezing=True, pre_grad_custom_pass=noting(seen), pre_grad_pass_timing="early"
    ):
        compiled = torch.compile(model)
        for _ in range(2):
            assert_close(model(x), compiled(x), 1e-5)
    (graph_module,) = seen
    assert merged_calls(graph_module) == MERGED


@pytest.mark.parametrize("sized", [True, False])
def test_padded_convolutions_merge_where_sizes_are_the_same_at_every_call(sized: bool) -> None:
    model, x = stem(), photo()
    any_batch, any_height = torch.export.Dim("batch"), torch.export.Dim("height", min=8, max=512)
    dynamic = {0: any_batch} if sized else {0: any_batch, 2: any_height}
    exported = torch.export.export(model, (x,), dynamic_shapes=(dynamic,), strict=False)
    program = exported.module()
    fxreduce.pre_grad_pass()(program.graph)
    program.recompile()
    assert ("BorderCorrectedConv" in map(class_name, program.modules())) is sized
    for other in (x, photo(3), x if sized else photo(high=41)):
        assert_close(model(other), program(other))


@TIMED
def test_inductor_compiles_padded_convolutions_that_were_merged() -> None:
    model, x, seen = stem().float(), photo().float(), list[GraphModule]()
    with config.patch(
        freezing=True, pre_grad_custom_pass=noting(seen), pre_grad_pass_timing="early"
    ):
        assert_close(model(x), torch.compile(model)(x), 1e-5)
    assert "BorderCorrectedConv" in map(class_name, seen[0].modules())


@pytest.mark.zoo
@pytest.mark.parametrize("before", [True, False])
def test_ahead_of_time_it_is_merged_before_or_as_a_pass(before: bool, tmp_path: Path) -> None:
    model, x = network().float(), image().float()
    program, seen = torch.export.export(model, (x,)), list[GraphModule]()
    if before:
        program = torch.export.export(fxreduce.fuse(program), (x,))
    with config.patch(pre_grad_custom_pass=noting(seen), pre_grad_pass_timing="early"):
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
    assert_close(model(x), torch._inductor.aoti_load_package(path)(x), 1e-5)
    assert "batch_norm" not in merged_calls(seen[0])
