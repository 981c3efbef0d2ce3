"""Planning removes the lowest entropy first and measures again after each removal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import fxreduce
from tests.models import (
    Functional,
    Ladder,
    Reordered,
    Residual,
    Small,
    images,
    points,
    seeded,
    stored_entropies,
    stored_inputs,
)

CLOUD = [points(20_000, 2)]


def plan_of(model: nn.Module, batches: Any, **options: Any) -> fxreduce.Plan:
    options = {"compensate": "identity"} | options
    return fxreduce.analyze(model, batches).plan(**options)


def test_measuring_again_changes_the_order() -> None:
    model = seeded(Reordered)
    at_first = stored_entropies(model, CLOUD)
    assert sorted(at_first, key=at_first.__getitem__) == ["a", "c", "b"]
    plan = plan_of(model, CLOUD, budget=3)
    assert plan.sites == ("a", "b", "c")
    model.a = nn.Identity()
    without_a = stored_entropies(model, CLOUD)
    assert plan.steps[0].entropy == pytest.approx(at_first["a"], abs=1e-6)
    assert plan.steps[1].entropy == pytest.approx(without_a["b"], abs=1e-6)
    assert [step.importance for step in plan.steps] == [step.entropy for step in plan.steps]


def greedy(model: nn.Module, batches: list[Tensor], count: int) -> list[str]:
    """EASIER's order by hand: measure, replace the lowest by Identity, measure again."""
    model, order = copy.deepcopy(model), []
    for _ in range(count):
        entropies = stored_entropies(model, batches)
        order.append(min(entropies, key=entropies.__getitem__))
        model.set_submodule(order[-1], nn.Identity())
    return order


@pytest.mark.parametrize(
    ("make", "batches", "count"),
    [
        pytest.param(lambda: torchvision.models.mobilenet_v2(), images(6, pixels=32), 8),
        pytest.param(Small, images(9), 2),
    ],
)
def test_the_order_is_that_of_the_greedy_rule_by_hand(
    make: Callable[[], nn.Module], batches: Any, count: int
) -> None:
    model = seeded(make)
    assert list(plan_of(model, batches, budget=count).sites) == greedy(model, batches, count)


def test_the_graph_that_is_measured_again_carries_the_channel_maps() -> None:
    model, batches = seeded(Small), images(30)
    plan = plan_of(model, batches, budget=2, compensate="channel")
    first = stored_entropies(model, batches)
    assert plan.sites[0] == min(first, key=first.__getitem__) == "act2"
    plan = plan_of(model, batches, budget=2, compensate="channel", importance=lambda s: -s.entropy)
    assert plan.sites == ("act", "act2")
    replaced = fxreduce.linearize(model, ["act"], "channel", fxreduce.analyze(model, batches))
    again = fxreduce.analyze(replaced, batches).sites[0]
    assert plan.steps[1].entropy == pytest.approx(again.entropy, abs=1e-6)
    assert abs(again.entropy - first["act2"]) > 1e-3


def test_every_second_call_of_a_shared_module_can_go_alone() -> None:
    model, batches = seeded(Residual), images(6)
    plan = plan_of(model, batches, budget=1, include=["relu#1"])
    assert plan.sites == ("relu#1",)
    reduced = plan.apply(model)
    x = batches[0]
    first = model.bn1(model.conv1(x)).relu()
    expected = model.head((model.bn2(model.conv2(first)) + first).mean((2, 3)))
    torch.testing.assert_close(reduced(x), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["acts.[01]"]}, {"acts.0", "acts.1"}),
        ({"include": "acts.2"}, {"acts.2"}),
        ({"include": ["acts.0", "*.3"]}, {"acts.0", "acts.3"}),
        ({"exclude": ["acts.[01]"]}, {"acts.2", "acts.3"}),
        ({"exclude": "*.2"}, {"acts.0", "acts.1", "acts.3"}),
        ({"include": ["acts.*"], "exclude": ["*.0"]}, {"acts.1", "acts.2", "acts.3"}),
        ({"include": []}, set()),
        ({"exclude": ["*"]}, set()),
    ],
)
def test_globs_choose_which_sites_may_go(options: dict[str, Any], expected: set[str]) -> None:
    plan = plan_of(seeded(Ladder), [points(50, 1)], budget=1.0, **options)
    assert set(plan.sites) == expected
    assert set(plan.entropies) == {f"acts.{n}" for n in range(4)} or not expected


def test_an_importance_of_the_user_s_own_orders_the_sites() -> None:
    plan = plan_of(
        seeded(Ladder), [points(50, 1)], budget=2, importance=lambda site: -int(site.name[-1])
    )
    assert plan.sites == ("acts.3", "acts.2")
    assert [step.importance for step in plan.steps] == [-3.0, -2.0]


def test_a_site_that_cannot_go_is_refused_with_the_reason_and_the_next_one_is_tried() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.shared, self.free = nn.ReLU(inplace=True), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            z = self.one(x)
            kept = z.view(-1, 3)
            self.shared(z)  # overwrites what `kept` shows
            return self.free(self.two(kept))

    model, batches = seeded(Overwriting), [points(40, 3)]
    plan = plan_of(model, batches, budget=1, importance=lambda site: site.name != "shared")
    x = batches[0]
    torch.testing.assert_close(fxreduce.fuse(model)(x), model(x))
    if "shared" in plan.sites:  # removed: then what it showed is not rectified either
        expected = model.free(model.two(model.one(x)))
    else:
        assert plan.sites == ("free",)
        assert plan.refusals[0].where == "shared"
        expected = model.two(model.one(x).relu())
    torch.testing.assert_close(plan.apply(model)(x), expected)


def test_the_same_call_gives_the_same_plan_and_the_same_bits() -> None:
    model, batches = seeded(Residual), images(8, 8, 8)
    first, second = (fxreduce.apply(model, batches, budget=1) for _ in range(2))
    assert fxreduce.report(first).to_json() == fxreduce.report(second).to_json()
    assert first.code == second.code
    for a, b in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])


def test_planning_twice_from_one_analysis_gives_the_same_plan() -> None:
    analysis = fxreduce.analyze(seeded(Small), images(5, 5, 5))
    first, second = (analysis.plan(budget=1) for _ in range(2))
    assert first.steps == second.steps
    assert first.regions == second.regions


def test_regions_group_the_removed_sites_that_become_one_affine_region() -> None:
    model, batches = seeded(lambda: torchvision.models.mobilenet_v2()), images(2, pixels=32)
    block = "features.3.conv"
    names = [f"{block}.0.2", f"{block}.1.2", "features.18.2"]
    plan = plan_of(model, batches, budget=3, include=names)
    assert plan.regions == ((f"{block}.0.2", f"{block}.1.2"), ("features.18.2",))


def test_functional_sites_can_be_removed_by_name() -> None:
    model, x = seeded(Functional), points(12, 6)
    plan = plan_of(model, [x], budget=1, include=["relu#1"])
    expected = nn.functional.gelu(model.three(model.two(model.one(x).relu())))
    torch.testing.assert_close(plan.apply(model)(x), expected)


def test_stored_inputs_are_those_of_the_original_calls() -> None:
    model, (x,) = seeded(Residual), images(2)
    with stored_inputs(model) as stored:
        model(x)
    torch.testing.assert_close(stored["relu"][0], model.bn1(model.conv1(x)))
