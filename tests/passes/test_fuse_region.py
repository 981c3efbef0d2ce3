"""Regions with sums become what is cheapest, exactly, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import assert_unchanged, counts, randomised, rewritten, state
from covers import regions
from hypothesis import given, settings
from networks import Wiring
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.modules import to_module
from fxreduce.operators.affine import map_tensors
from fxreduce.operators.regions import Leaf, Parallel, Region
from fxreduce.operators.setting import Setting
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_region import FuseRegion


def built(region: Region) -> nn.Module:
    """A module that computes the region, with random weights."""
    if isinstance(region, Leaf):
        operator = map_tensors(region.operator, lambda t: torch.randn(t.shape, dtype=torch.float64))
        return to_module(operator, torch.empty(0, dtype=torch.float64))
    if isinstance(region, Parallel):
        left, right = built(region.left), built(region.right)
        return Wiring(lambda m, x: m.left(x) + m.right(x), left=left, right=right)
    return nn.Sequential(*map(built, region.items))


@settings(max_examples=max(settings().max_examples - 1000, 40))
@given(regions())
def test_random_regions_keep_their_outputs(drawn: tuple[Region, Setting]) -> None:
    region, setting = drawn
    model = built(region).eval()
    x = torch.randn(setting.shape, dtype=torch.float64)
    graph_module = capture(model, x)
    before = state(graph_module)
    rewritten(FuseRegion(), model, x)
    FuseRegion().run(graph_module)
    assert_unchanged(graph_module, before)


class Bottleneck(nn.Module):
    """A branch through few channels beside a wide one; in front of the sum a step of one's own."""

    def __init__(self, step: Any = None) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(64, 4, 1)
        self.widen = nn.Conv2d(4, 64, 1)
        self.beside = nn.Conv2d(64, 64, 3, padding=1)
        self.step = step or (lambda y, x: y)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(x)
        return torch.tanh(self.widen(self.step(y, x)) + self.beside(x))


def run(model: nn.Module, **options: Any) -> PassResult:
    return rewritten(FuseRegion(), randomised(model), torch.randn(2, 64, 8, 7).double(), **options)


def test_a_narrow_branch_merges_into_the_wide_one_beside_it() -> None:
    result = run(Bottleneck())
    assert counts(result) == {"created": 1, "replaced": 1, "erased": 3}
    model = randomised(Bottleneck())
    x = torch.randn(2, 64, 8, 7).double()
    step_by_step = fxreduce.fuse(model, example_inputs=x, disable="fuse_region")
    assert fxreduce.report(step_by_step).operators_after == 3
    fused = fxreduce.fuse(model, example_inputs=x)
    assert fxreduce.report(fused).operators_after == 1


def test_an_exported_region_merges_alike() -> None:
    model, x = randomised(Bottleneck()), torch.randn(2, 64, 8, 7).double()
    fused = fxreduce.fuse(export(model, (x,)))
    assert fxreduce.report(fused).operators_after == 1


def test_regions_inside_a_region_merge_with_what_stands_around_them() -> None:
    inner = Wiring(
        lambda m, x: m.f(x) + x, f=nn.Sequential(nn.Conv2d(64, 4, 1), nn.Conv2d(4, 64, 1))
    )
    outer = Wiring(lambda m, x: m.g(m.inner(x)) + m.h(x), inner=inner,
                   g=nn.Conv2d(64, 64, 1), h=nn.Conv2d(64, 64, 1))  # fmt: skip
    result = run(outer)
    assert counts(result)["created"] == 1
    assert len([n for n in result.graph_module.graph.nodes if n.op == "call_module"]) == 1


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda y, x: torch.relu(y), id="a rectifier stands inside"),
        pytest.param(lambda y, x: y * y.mean(), id="another node reads what is inside"),
        pytest.param(lambda y, x: y + x.mul_(2).mean(), id="the input is overwritten inside"),
    ],
)
def test_what_is_no_region_is_left_alone(step: Any) -> None:
    result = run(Bottleneck(step))
    assert not result.modified


def test_a_sum_that_weights_its_addend_is_left_alone() -> None:
    model = Wiring(lambda m, x: torch.add(m.f(x), x, alpha=2), f=nn.Conv2d(64, 64, 1))
    assert not run(model).modified


def test_a_chain_is_left_to_the_pass_for_chains() -> None:
    assert not run(nn.Sequential(nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64))).modified


def test_without_shapes_a_large_input_is_assumed() -> None:
    assert run(Bottleneck(), shapes=False).modified


def test_a_part_that_float16_cannot_hold_stays_apart() -> None:
    model = Bottleneck()
    for weight in (model.narrow.weight, model.widen.weight):
        nn.init.constant_(weight, 300.0)
    model = model.eval().half()
    x = torch.full((1, 64, 4, 4), 1e-4).half()
    result = FuseRegion().run(capture(model, x))
    assert not result.modified
