"""Random networks compute the same after every pass, alone and together, and stay as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import assert_close, assert_unchanged, state
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import Network
from strategies import networks
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import FlopsCost
from fxreduce.passes.base import Pass, run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import PREPARE, finishing, fusion, merging

Drawn = tuple[Network, Tensor]


def outputs(module: nn.Module, x: Tensor) -> Any:
    """What the module returns, and what it leaves in its input, which it may overwrite."""
    given = x.clone()
    with torch.no_grad():
        return module(given), given


def assert_same(before: nn.Module, after: nn.Module, x: Tensor) -> None:
    assert_close(outputs(before, x), outputs(after, x))


EACH = (*PREPARE, *merging(FlopsCost()), *finishing(FlopsCost()))


@pytest.mark.parametrize("each", EACH, ids=lambda p: p.name)
@given(drawn=networks(), shapes=st.booleans())
def test_each_pass_alone_keeps_the_outputs_and_the_graph_it_was_given(
    each: Pass, drawn: Drawn, shapes: bool
) -> None:
    net, x = drawn
    graph_module = capture(net, x if shapes else None)
    before = state(graph_module)
    result = each.run(graph_module)
    assert_unchanged(graph_module, before)
    assert result.modified is (len(result.edits) > 0)
    assert_same(net, result.graph_module, x)


@given(
    networks(), st.booleans(), st.sets(st.sampled_from(["drop_identities", "single_assignment"]))
)
def test_fusing_keeps_the_outputs_and_leaves_the_model_alone(
    drawn: Drawn, shapes: bool, disable: set[str]
) -> None:
    net, x = drawn
    before = state(net)
    fused = fxreduce.fuse(net, example_inputs=x if shapes else None, disable=disable)
    assert_unchanged(net, before)
    assert_same(net, fused, x)
    assert_same(net, fxreduce.fuse(fused), x)


@settings(max_examples=settings().max_examples // 7)  # an export takes a second
@given(networks(length=8))
def test_fusing_an_exported_model_keeps_the_outputs(drawn: Drawn) -> None:
    net, x = drawn
    program = export(net, (x,))
    assert_same(net, fxreduce.fuse(program), x)


@given(networks(), st.data())
def test_what_linearise_leaves_can_be_fused_exactly(drawn: Drawn, data: st.DataObject) -> None:
    net, x = drawn
    assume(net.state_dict())  # or the maps have no dtype but torch's default
    graph_module = capture(net, x)
    sites = [site.name for site in find_sites(graph_module)]
    chosen = data.draw(st.lists(st.sampled_from(sites), unique=True)) if sites else []
    maps = {
        name: ScaleShift(torch.rand(c).double(), torch.rand(c).double(), 0)
        for name, c in _widths(graph_module).items()
        if data.draw(st.booleans())
    }
    removal = run_pipeline(graph_module, (*PREPARE, Linearise(tuple(chosen), maps)))
    kept = {site.name for site in find_sites(removal.graph_module)}
    refused = {refusal.where for refusal in removal.refusals}
    assert kept == set(sites) - (set(chosen) - refused)
    merged = run_pipeline(removal.graph_module, fusion(FlopsCost()))
    assert_same(removal.graph_module, merged.graph_module, x)


def _widths(graph_module: GraphModule) -> dict[str, int]:
    """The length of the last axis of each site's input, by its name."""
    return {
        site.name: site.rectifier.input.meta["fxreduce.shape"][-1]
        for site in find_sites(graph_module)
    }
