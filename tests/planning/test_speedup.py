"""Speedup and combined budgets: when they stop, what they keep, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.graph.latency import LatencyCost
from fxreduce.operators.affine import Operator, ScaleShift
from fxreduce.operators.setting import Setting
from fxreduce.planning import payoff
from fxreduce.planning.budgets import Budget, Context, Judge
from tests.models import points, seeded

POINTS = [points(50, 4)]


@dataclass(frozen=True)
class Calls:
    """Each call costs one, that of a scale and shift several."""

    name: str = "calls"
    scale_shift: float = 1.0

    def cost(self, operator: Operator, setting: Setting) -> float:
        real = isinstance(operator, ScaleShift) and operator.scale.numel() > 1
        return self.scale_shift if real else 1.0


def chain() -> nn.Module:
    """Four Linears and three rectifiers: 7 calls, and 7 - 2k without k of the rectifiers."""
    layers: list[nn.Module] = [nn.Linear(4, 4)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Linear(4, 4)]
    return nn.Sequential(*layers)


NAMES = ("1", "3", "5")


def plan_of(budget: Any, **options: Any) -> fxreduce.Plan:
    """A plan for the chain, whose rectifiers go from the front."""
    defaults = {"compensate": "identity", "cost": Calls(), "importance": lambda s: int(s.name)}
    return fxreduce.analyze(seeded(chain), POINTS).plan(budget=budget, **(defaults | options))


@pytest.mark.parametrize(
    ("x", "count", "found"),
    [(1, 0, "1"), (1.4, 1, "1.4"), (1.41, 2, "2.333"), (2.4, 3, "7"), (7.0, 3, "7")],
)
def test_speedup_removes_until_the_merged_model_is_so_many_times_as_cheap(
    x: float, count: int, found: str
) -> None:
    plan = plan_of(fxreduce.Speedup(x))
    assert plan.sites == NAMES[:count]
    assert plan.stopped == f"it is {found} times as cheap, as the budget says"
    assert plan.refusals == ()


def test_a_speedup_that_cannot_be_reached_keeps_what_was_found_and_says_so() -> None:
    plan = plan_of(fxreduce.Speedup(8))
    assert plan.sites == NAMES
    missed = (
        "8 times as cheap is not reached; the best that was found is 7 times, with 3 of 3 "
        "removals, which are kept"
    )
    assert plan.stopped == f"no site is left to try; {missed}"
    assert [(row.where, row.reason) for row in plan.refusals] == [("the whole graph", missed)]


class Costly(nn.Module):
    """Behind the first rectifier operators merge; the map in place of the second stays."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.first, self.second = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(self.first(self.into(x))).softmax(-1)
        return self.second(x.log().cos()).softmax(-1)


@pytest.mark.parametrize("scale_shift", [1, 20])
def test_removals_behind_the_largest_speedup_are_not_kept(scale_shift: float) -> None:
    model = seeded(Costly)
    # 8 calls, 6 without the first. In the place of the second stands a map, which costs no less.
    plan = fxreduce.analyze(model, POINTS).plan(
        budget=fxreduce.Speedup(2),
        cost=Calls(scale_shift=scale_shift),
        compensate="channel",
        importance=lambda site: site.name == "second",
    )
    assert plan.sites == tuple(plan.maps) == ("first",)
    assert plan.regions == (("first",),)
    assert plan.stopped.endswith("is 1.333 times, with 1 of 2 removals, which are kept")
    assert fxreduce.report(plan.apply(model)).removed == ("first",)


def test_merges_alone_may_be_enough() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()).eval()
    plan = fxreduce.analyze(model, POINTS).plan(budget=fxreduce.Speedup(1.5), cost=Calls())
    assert (plan.sites, plan.stopped) == ((), "it is 1.5 times as cheap, as the budget says")


def test_a_model_without_rectifiers_is_judged_all_the_same() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    plan = fxreduce.analyze(model, POINTS).plan(budget=fxreduce.Speedup(3), cost=Calls())
    assert plan.stopped.startswith("no site is left to try; 3 times as cheap is not reached; the")


@pytest.mark.parametrize(
    ("model", "stopped"),
    [
        (nn.Sequential(nn.ReLU()), "it is inf times as cheap, as the budget says"),
        (
            nn.Identity(),
            "no site is left to try; 2 times as cheap is not reached; the best that was",
        ),
    ],
)
def test_a_graph_of_which_nothing_is_left_costs_nothing(model: nn.Module, stopped: str) -> None:
    plan = fxreduce.analyze(model.eval(), POINTS).plan(
        budget=fxreduce.Speedup(2), cost=Calls(), compensate="identity"
    )
    assert plan.stopped.startswith(stopped)


def test_passes_that_are_switched_off_gain_nothing() -> None:
    def removed(*disable: str) -> int:
        reduced = fxreduce.apply(
            seeded(chain),
            POINTS,
            budget=fxreduce.Speedup(1.5),
            compensate="identity",
            cost=Calls(),
            disable=disable,
        )
        return len(fxreduce.report(reduced).removed)

    assert removed() == 2  # 7 / 3
    assert removed("fuse_chain") == 3  # 7 / 5, then 7 / 4


@pytest.mark.parametrize(("merged", "expected"), [(1.0, 4.0), (2.5, 2.0)])
def test_latency_is_judged_by_the_clock_and_merges_that_do_not_pay_are_left_out(
    monkeypatch: pytest.MonkeyPatch, merged: float, expected: float
) -> None:
    def clock(calls: Sequence[object], device: torch.device, *, rounds: int) -> list[float]:
        assert len(calls) == 3
        return [4.0, 2.0, merged]

    monkeypatch.setattr(payoff, "median_latencies", clock)
    monkeypatch.setattr(LatencyCost, "costs", lambda self, candidates: [1.0] * len(candidates))
    analysis = fxreduce.analyze(seeded(chain), POINTS)
    graph_module = analysis.graph_module
    cost = LatencyCost(cache=None)
    assert payoff.speedup(graph_module, graph_module, cost, analysis.example) == expected


def rectifiers(module: nn.Module) -> float:
    """How many rectifiers the module calls; what MaxDrop watches here."""
    return float(sum(isinstance(part, nn.ReLU) for part in module.modules()))


@pytest.mark.parametrize(
    ("budget", "count", "stopped"),
    [
        (fxreduce.MaxDrop(3, rectifiers) & fxreduce.Speedup(2), 2, "it is 2.333 times"),
        (fxreduce.Speedup(2) & fxreduce.MaxDrop(3, rectifiers), 2, "it is 2.333 times"),
        (fxreduce.MaxDrop(1, rectifiers) & fxreduce.Speedup(2), 1, "no site is left to try; 2 tim"),
        (fxreduce.Speedup(2) & fxreduce.MaxDrop(1, rectifiers), 1, "no site is left to try; 2 tim"),
        (fxreduce.Remove(1) & fxreduce.Speedup(2), 1, "1 are removed, as the budget says; 2 times"),
        (fxreduce.Remove(3) & fxreduce.Speedup(2), 2, "it is 2.333 times"),
        (fxreduce.Fraction(0.7) & fxreduce.Remove(1), 1, "1 are removed"),
        (fxreduce.Remove(1) & 0.7, 1, "1 are removed"),
        (2 & fxreduce.Fidelity(0), 2, "2 are removed"),
        (fxreduce.EntropyBelow(2) & fxreduce.Remove(2), 2, "2 are removed"),
        (fxreduce.Remove(2) & fxreduce.EntropyBelow(0), 0, "1 has "),
    ],
)
def test_budgets_together_allow_what_all_allow_and_stop_with_the_first(
    budget: Budget, count: int, stopped: str
) -> None:
    plan = plan_of(budget)
    assert plan.sites == NAMES[:count]
    assert plan.stopped.startswith(stopped)


def test_what_one_of_the_budgets_refuses_is_refused_with_its_reason() -> None:
    plan = plan_of(fxreduce.Speedup(2) & fxreduce.MaxDrop(1, rectifiers))
    where = [row.where for row in plan.refusals]
    assert where == ["3", "5", "the whole graph"]
    assert plan.refusals[0].reason == "without it evaluate falls from 3 to 1, by more than 1"


@dataclass(frozen=True)
class FirstOnly:
    """A third party's budget, which knows nothing of `&`."""

    def begin(self, context: Context) -> Judge:
        return fxreduce.Remove(1)


def test_any_budget_combines_from_either_side_and_in_any_grouping() -> None:
    one, two, three = fxreduce.Remove(1), fxreduce.Fraction(0.5), fxreduce.Speedup(2)
    assert (one & two) & three == one & (two & three)
    assert plan_of(FirstOnly() & fxreduce.Remove(2)).sites == NAMES[:1]
    assert plan_of(fxreduce.Remove(2) & FirstOnly()).sites == NAMES[:1]
    assert fxreduce.Speedup(2) & "auto" == fxreduce.Speedup(2) & fxreduce.Fidelity(0.99)


@pytest.mark.parametrize("other", ["much", None, True, fxreduce.Remove])
def test_what_is_no_budget_does_not_combine(other: Any) -> None:
    with pytest.raises(fxreduce.PlanError, match=r"a budget is an int"):
        fxreduce.Remove(1) & other


@pytest.mark.parametrize("x", [0.9, 0, -2, float("nan"), float("inf"), "2", True, None])
def test_a_speedup_that_makes_no_sense_is_refused_where_it_is_written(x: Any) -> None:
    with pytest.raises(fxreduce.PlanError, match=r"how many times as cheap .*1 or more; seen: "):
        fxreduce.Speedup(x)


def test_a_budget_is_used_again_for_another_plan() -> None:
    budget = fxreduce.Speedup(1.41) & fxreduce.Remove(3)
    assert plan_of(budget).sites == plan_of(budget).sites == NAMES[:2]
