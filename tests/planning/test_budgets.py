"""Budgets: how many rectifiers go, what ends planning, and which values are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.planning import budgets
from fxreduce.planning.budgets import Context, Judge
from tests.models import Ladder, Small, images, points, seeded, stored_entropies

NAN = float("nan")
POINTS = [points(4000, 1)]
BY_ENTROPY = ("acts.0", "acts.2", "acts.3", "acts.1")  # shifts 3, 1.5, 0.8 and 0.2


@pytest.fixture(scope="module")
def analysis() -> fxreduce.Analysis:
    return fxreduce.analyze(seeded(Ladder), POINTS)


def removed(analysis: fxreduce.Analysis, budget: Any, **options: Any) -> tuple[str, ...]:
    return analysis.plan(budget=budget, compensate="identity", **options).sites


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (0, 0),
        (1, 1),
        (3, 3),
        (4, 4),
        (np.int64(2), 2),
        (0.0, 0),
        (0.5, 2),
        (0.74, 2),
        (0.75, 3),
        (1.0, 4),
        (np.float32(0.5), 2),
        (fxreduce.Remove(2), 2),
        (fxreduce.Fraction(0.25), 1),
    ],
)
def test_a_number_or_a_fraction_of_rectifiers_goes_lowest_entropy_first(
    analysis: fxreduce.Analysis, budget: Any, count: int
) -> None:
    plan = analysis.plan(budget=budget, compensate="identity")
    assert plan.sites == BY_ENTROPY[:count]
    assert plan.stopped == (
        "no site is left to try" if count == 4 else f"{count} are removed, as the budget says"
    )


def test_a_fraction_is_not_a_victim_of_binary_rounding() -> None:
    original = torch.fx.symbolic_trace(nn.ReLU())
    context = Context(original, sites=100, outputs=lambda module: [], speedup=lambda module: 1.0)
    for hundredths in range(101):
        assert fxreduce.Fraction(hundredths / 100).begin(context).n == hundredths


def test_entropy_below_removes_while_the_lowest_entropy_is_below(
    analysis: fxreduce.Analysis,
) -> None:
    entropies = stored_entropies(seeded(Ladder), POINTS, -1)
    third = entropies["acts.3"]
    assert removed(analysis, fxreduce.EntropyBelow(third)) == BY_ENTROPY[:2]
    assert removed(analysis, fxreduce.EntropyBelow(third + 1e-6)) == BY_ENTROPY[:3]
    assert removed(analysis, fxreduce.EntropyBelow(0)) == ()
    stopped = analysis.plan(budget=fxreduce.EntropyBelow(third), compensate="identity").stopped
    assert stopped == f"acts.3 has {third:.4f} bits, not below {third:g}"


def rectified(module: nn.Module) -> float:
    """How many of the ladder's outputs are still rectified; the value that MaxDrop watches."""
    return float((module(torch.full((1, 1), -100.0)) == 0).sum())


@pytest.mark.parametrize(("drop", "count"), [(0, 0), (0.5, 0), (1, 1), (2.9, 2), (4, 4)])
def test_max_drop_removes_as_long_as_the_value_falls_by_at_most_the_drop(
    analysis: fxreduce.Analysis, drop: float, count: int
) -> None:
    assert removed(analysis, fxreduce.MaxDrop(drop, rectified)) == BY_ENTROPY[:count]


def test_max_drop_keeps_what_costs_too_much_and_tries_the_next(
    analysis: fxreduce.Analysis,
) -> None:
    def dear(module: nn.Module) -> Tensor:  # a tensor of one number is a number, too
        return (module(torch.full((1, 1), -100.0))[0, 2] == 0).double()

    budget = fxreduce.MaxDrop(0.5, dear)
    plan = analysis.plan(budget=budget, compensate="identity", candidates="sites")
    assert plan.sites == ("acts.0", "acts.3", "acts.1")
    (refusal,) = plan.refusals
    assert refusal.where == "acts.2"
    assert refusal.reason == "without it evaluate falls from 1 to 0, by more than 0.5"


def test_evaluate_gets_an_unmerged_module_in_eval_mode() -> None:
    seen: list[nn.Module] = []

    def evaluate(module: nn.Module) -> float:
        seen.append(module)
        assert not any(part.training for part in module.modules())
        return module(images(2)[0]).sum().item() * 0

    budget = fxreduce.MaxDrop(0, evaluate)
    fxreduce.apply(seeded(Small), images(4), budget=budget, compensate="channel")
    assert len(seen) == 3
    assert all(isinstance(module.get_submodule("norm"), nn.BatchNorm2d) for module in seen)


class Voting(nn.Module):
    """Two classes: the first wins where the rectified input does; the identity never lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.act(x), torch.full_like(x, -0.5)], 1)


@pytest.mark.parametrize(("agreement", "count"), [(0.0, 1), (0.75, 1), (0.76, 0), (1.0, 0)])
def test_fidelity_counts_how_often_the_prediction_stays(agreement: float, count: int) -> None:
    # Of the held-out four samples one is below -0.5: there alone the identity predicts otherwise.
    held_out = torch.tensor([[-1.0], [-0.4], [0.3], [2.0]])
    analysis = fxreduce.analyze(Voting().eval(), [points(9, 1), held_out])
    plan = analysis.plan(budget=fxreduce.Fidelity(agreement), compensate="identity")
    assert len(plan.sites) == count
    if not count:
        assert plan.refusals[0].reason == (
            f"without it 75.00% of 4 predictions are the original's, below {agreement:.2%}"
        )


def test_auto_is_a_fidelity_of_99_percent() -> None:
    model, batches = seeded(Small), images(*[20] * 6)
    named = fxreduce.analyze(model, batches).plan()
    spelled = fxreduce.analyze(model, batches).plan(budget=fxreduce.Fidelity(0.99))
    assert named.sites == spelled.sites
    assert named.stopped == spelled.stopped


@pytest.mark.parametrize("batch_size", [20, 120])
def test_fidelity_compares_the_same_samples_where_the_loader_shuffles(batch_size: int) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    with torch.no_grad():  # always on, and taken away again: removing it changes no prediction
        model[0].bias += 50
        model[2].bias -= 50 * model[2].weight.sum(1)
    assert model(points(120, 4)).argmax(1).bincount().max() < 80  # predictions vary
    data = torch.utils.data.TensorDataset(points(120, 4))
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True)
    plan = fxreduce.analyze(model, loader).plan(budget=fxreduce.Fidelity(1.0))
    assert plan.sites == ("1",)


@pytest.mark.parametrize("shape", [(1,), ()])
def test_fidelity_refuses_a_regression_and_names_what_to_use(shape: tuple[int, ...]) -> None:
    class Regression(Small):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)[:, 0].view(-1, *shape)

    for budget in ("auto", fxreduce.Fidelity(0.5)):
        with pytest.raises(
            fxreduce.PlanError,
            match=r"at least two classes; seen: .*Use MaxDrop\(drop, evaluate\) or a number",
        ):
            fxreduce.apply(seeded(Regression), images(4), budget=budget)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fxreduce.Remove(-1), r"removes 0 or more rectifiers.*seen: -1"),
        (lambda: fxreduce.Remove(2.5), r"a whole number of them; seen: 2\.5"),
        (lambda: fxreduce.Remove(True), r"seen: True"),
        (lambda: fxreduce.Fraction(-0.1), r"between 0 and 1; seen: -0\.1"),
        (lambda: fxreduce.Fraction(1.5), r"seen: 1\.5\. For a number of rectifiers pass an int"),
        (lambda: fxreduce.Fraction(NAN), r"between 0 and 1; seen: nan"),
        (lambda: fxreduce.Fraction("half"), r"between 0 and 1; seen: 'half'"),
        (lambda: fxreduce.EntropyBelow(-0.5), r"a number of bits, 0 or more; seen: -0\.5"),
        (lambda: fxreduce.EntropyBelow(NAN), r"a number of bits, 0 or more; seen: nan"),
        (lambda: fxreduce.MaxDrop(NAN, rectified), r"a drop is a number, 0 or more; seen: nan"),
        (lambda: fxreduce.MaxDrop(-1, rectified), r"a drop is a number, 0 or more; seen: -1"),
        (lambda: fxreduce.MaxDrop(1, None), r"evaluate is a function.*higher is better; seen: No"),
        (lambda: fxreduce.Fidelity(1.01), r"an agreement lies between 0 and 1; seen: 1\.01"),
        (lambda: fxreduce.Fidelity(NAN), r"an agreement lies between 0 and 1; seen: nan"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_where_it_is_written(
    make: Any, message: str
) -> None:
    with pytest.raises(fxreduce.PlanError, match=message):
        make()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (True, r"a budget is an int \(rectifiers\).*one of 'auto'.*seen: True"),
        (None, r"seen: None"),
        ("much", r"seen: 'much'"),
        ([1], r"seen: \[1\]"),
        (fxreduce.Remove, r"seen: <class"),
        (-1, r"removes 0 or more rectifiers"),
        (-0.5, r"between 0 and 1"),
        (2.0, r"For a number of rectifiers pass an int"),
        (5, r"removes 5 rectifiers, but 4 can be removed; lower it, or look at include, exclude"),
        (fxreduce.MaxDrop(1, lambda module: NAN), r"must return a number.*it returned nan"),
        (fxreduce.MaxDrop(1, lambda module: None), r"must return a number.*it returned None"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused(
    analysis: fxreduce.Analysis, budget: Any, message: str
) -> None:
    with pytest.raises(fxreduce.PlanError, match=message):
        analysis.plan(budget=budget)


def test_a_budget_is_held_against_the_sites_that_may_go(analysis: fxreduce.Analysis) -> None:
    with pytest.raises(fxreduce.PlanError, match=r"removes 3 rectifiers, but 2 can be removed"):
        analysis.plan(budget=3, exclude=["acts.0", "acts.1"])


@dataclass(frozen=True)
class FirstOnly:
    """A third party's budget: one removal, whatever the model."""

    def begin(self, context: Context) -> Judge:
        assert context.sites == 4
        return fxreduce.Remove(1)


@pytest.fixture
def registered() -> Iterator[str]:
    before = dict(budgets._NAMED)
    fxreduce.registry.register_budget("first only", FirstOnly())
    yield "first only"
    budgets._NAMED.clear()
    budgets._NAMED.update(before)


def test_a_budget_can_be_registered_and_given(analysis: fxreduce.Analysis, registered: str) -> None:
    assert removed(analysis, registered) == removed(analysis, FirstOnly()) == BY_ENTROPY[:1]
    with pytest.raises(fxreduce.PlanError, match=r"one of 'auto', 'first only'; seen: 'last'"):
        analysis.plan(budget="last")
