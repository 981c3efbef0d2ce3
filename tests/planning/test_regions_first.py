"""Sets of sites are rated by what they save together; planning removes the best of them first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxreduce
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.shapes import propagate_shapes
from fxreduce.operators.cost import FlopsCost
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import PREPARE, fusion
from fxreduce.planning.gain import Gains
from fxreduce.planning.payoff import graph_cost
from tests.models import images, seeded

COST = FlopsCost()


class Block(nn.Module):
    """An inverted-residual block: both rectifiers gone, it is one convolution with its skip."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, expanded, 1, bias=False)
        self.act1 = nn.ReLU6()
        self.depthwise = nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False)
        self.act2 = nn.ReLU6()
        self.project = nn.Conv2d(expanded, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.act2(self.depthwise(self.act1(self.expand(x))))
        return x + self.project(inside)


class Network(nn.Module):
    """Two inverted-residual blocks between rectifiers that divide them, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.one = Block(8, 48)
        self.between = nn.ReLU()
        self.two = Block(8, 24)
        self.after = nn.ReLU()
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.one(self.relu(self.stem(x))))
        return self.fc(self.after(self.two(y)).mean((2, 3)))


def prepared(model: nn.Module, shape: tuple[int, ...]) -> GraphModule:
    graph_module = fxreduce.capture(model)
    propagate_shapes(graph_module, lambda module: module(torch.zeros(shape)))
    return run_pipeline(graph_module, PREPARE).graph_module


def merged_cost(graph_module: GraphModule, removed: Iterable[str]) -> float:
    without = Linearise(tuple(removed)).run(graph_module).graph_module
    return graph_cost(run_pipeline(without, fusion(COST)).graph_module, COST)


def names(graph_module: GraphModule) -> list[str]:
    return [site.name for site in find_sites(graph_module)]


def test_what_a_set_saves_is_what_merging_the_whole_graph_without_it_saves() -> None:
    graph_module = prepared(seeded(Network), (2, 3, 12, 12))
    gains = Gains(graph_module, COST).worthwhile(names(graph_module))
    assert ("one.act1", "one.act2") in gains
    dense = merged_cost(graph_module, ())
    for sites, gain in gains.items():
        assert gain == pytest.approx(dense - merged_cost(graph_module, sites), rel=1e-9), sites


def test_both_rectifiers_of_a_block_save_more_than_one_by_one() -> None:
    graph_module = prepared(seeded(Network), (2, 3, 12, 12))
    gains = Gains(graph_module, COST).worthwhile(names(graph_module))
    for block in ("one", "two"):
        apart = gains.get((f"{block}.act1",), 0) + gains.get((f"{block}.act2",), 0)
        assert gains[f"{block}.act1", f"{block}.act2"] > 2 * apart


def test_sites_that_save_apart_what_they_save_together_are_no_set() -> None:
    mlps = [
        nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.LayerNorm(8))
        for _ in range(2)
    ]
    graph_module = prepared(nn.Sequential(*mlps).eval(), (2, 5, 8))
    gains = Gains(graph_module, COST).worthwhile(names(graph_module))
    assert set(gains) == {("0.1",), ("1.1",)}


def test_gains_go_on_from_what_is_removed() -> None:
    graph_module = prepared(seeded(Network), (2, 3, 12, 12))
    gains = Gains(graph_module, COST)
    removed = ("one.act1", "one.act2")
    left = [name for name in names(graph_module) if name not in removed]
    gains.remove(removed)
    already = merged_cost(graph_module, removed)
    for sites, gain in gains.worthwhile(left).items():
        both = merged_cost(graph_module, (*removed, *sites))
        assert gain == pytest.approx(already - both, rel=1e-9), sites


def plan(budget: object, **options: object) -> fxreduce.Plan:
    options = {"compensate": "identity"} | options
    return fxreduce.analyze(seeded(Network), images(8, 8, pixels=12), progress=False).plan(
        budget=budget, **options
    )


def test_what_saves_most_for_equal_damage_goes_first() -> None:
    order = plan(fxreduce.MaxDrop(0, lambda module: 0.0), importance=lambda site: 1.0).sites
    assert order[:2] == ("one.act1", "one.act2")  # three times as wide as the other block
    assert len(order) == 7  # the budget bears all


def test_a_cheap_set_of_great_importance_goes_late() -> None:
    def importance(site: object) -> float:
        return 1e6 if site.name.startswith("one") else 1.0

    order = plan(fxreduce.MaxDrop(0, lambda module: 0.0), importance=importance).sites
    assert set(order[-2:]) == {"one.act1", "one.act2"}
    assert order[:2] == ("two.act1", "two.act2")


def test_counting_budgets_go_by_importance_alone_unless_regions_are_asked_for() -> None:
    by_entropy = plan(7)
    entropies = [step.entropy for step in by_entropy.steps]
    assert by_entropy.sites[0] != "one.act1"
    assert entropies[0] == min(by_entropy.entropies.values())
    flat = {"importance": lambda site: 1.0, "candidates": "regions"}
    assert plan(2, **flat).sites == ("one.act1", "one.act2")
    assert len(plan(1, **flat).sites) == 1  # the block is one too many
    assert len(plan(3, **flat).sites) == 3


def test_a_refused_set_is_refused_as_one_and_its_sites_are_still_tried() -> None:
    def evaluate(module: nn.Module) -> float:
        sites = names(module)
        return float("one.act1" in sites or "one.act2" in sites)

    found = plan(fxreduce.MaxDrop(0.5, evaluate), importance=lambda site: 1.0)
    assert "one.act1 + one.act2" in [refusal.where for refusal in found.refusals]
    assert len({"one.act1", "one.act2"}.intersection(found.sites)) == 1
    assert {"two.act1", "two.act2"} <= set(found.sites)


def test_speed_is_reached_with_fewer_removals() -> None:
    budget = fxreduce.Speedup(1.5)
    assert len(plan(budget).sites) < len(plan(budget, candidates="sites").sites)


def test_the_same_plan_each_time() -> None:
    budget = fxreduce.Fidelity(0.5)
    assert plan(budget).sites == plan(budget).sites


def test_unknown_candidates_are_named_with_the_known_ones() -> None:
    with pytest.raises(fxreduce.UnsupportedError, match=r"'auto', 'sites', 'regions'.*'all'"):
        plan(1, candidates="all")
