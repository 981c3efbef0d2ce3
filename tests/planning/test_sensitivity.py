"""Sensitivity: against brute force, in how many passes, and for outputs of every form."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from tests.models import Residual, Small, images, points, seeded

BATCHES = images(6, 5, 4, 6, dtype=torch.float64)
MEASURED = [BATCHES[0], BATCHES[1], BATCHES[3]]  # every third batch is held out


def outputs(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [model(batch.clone()) for batch in MEASURED]


def change(reference: nn.Module, other: nn.Module) -> float:
    """The relative mean squared change of the output over all batches."""
    pairs = list(zip(outputs(reference), outputs(other), strict=True))
    moved = sum(float((y - z).square().sum()) for y, z in pairs)
    return moved / sum(float(y.square().sum()) for y, _ in pairs)


@pytest.mark.parametrize("compensate", ["identity", "channel"])
@pytest.mark.parametrize("make", [Small, Residual])
def test_sensitivity_is_the_change_without_the_site_alone(
    make: Callable[[], nn.Module], compensate: str
) -> None:
    model = seeded(make).double()
    analysis = fxreduce.analyze(model, MEASURED)
    expected = {
        site.name: change(model, fxreduce.linearize(model, [site.name], compensate, analysis))
        for site in analysis.sites
    }
    for name, value in expected.items():
        plan = fxreduce.analyze(model, BATCHES).plan(
            budget=1, importance="sensitivity", compensate=compensate, include=[name]
        )
        assert plan.steps[0].importance == pytest.approx(value, rel=1e-9)
    plan = fxreduce.analyze(model, BATCHES).plan(
        budget=2, importance="sensitivity", compensate=compensate
    )
    least = min(expected, key=expected.__getitem__)
    assert plan.sites[0] == least
    assert min(expected.values()) < max(expected.values())
    # The second is held against the model without the first, in which it is measured anew.
    reduced = fxreduce.linearize(model, [least], compensate, analysis)
    again = fxreduce.analyze(reduced, MEASURED)
    value = change(reduced, fxreduce.linearize(reduced, plan.sites[1:], compensate, again))
    assert plan.steps[1].importance == pytest.approx(value, rel=1e-9)


def test_each_batch_is_run_once_for_reference_and_once_for_each_site() -> None:
    calls: list[int] = []

    def forward(module: nn.Module, batch: Tensor) -> Any:
        calls.append(len(batch))
        return module(batch)

    analysis = fxreduce.analyze(seeded(Small).double(), BATCHES, forward=forward)
    calls.clear()
    analysis.plan(budget=1, importance="sensitivity", compensate="channel")
    measuring, sites = 1, 2
    of_held_out = 3  # the original, and what is left of it with and without the site's map
    assert len(calls) == len(MEASURED) * (measuring + 1 + sites) + of_held_out
    assert calls[len(MEASURED) : -of_held_out] == [6, 6, 6, 5, 5, 5, 6, 6, 6]  # batch by batch


class Outputs(nn.Module):
    """Two outputs of very different size beside one that is no floating-point number."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> dict[str, Any]:
        large = self.large(x) * 1000
        return {"small": [self.small(x)], "large": large, "which": large.argmax(1)}


def test_an_output_of_several_tensors_counts_by_the_mean_of_their_changes() -> None:
    x = points(40, 3).double()
    analysis = fxreduce.analyze(Outputs().eval(), [x])
    share = float((x - x.relu()).square().sum() / x.relu().square().sum())
    for name in ("small", "large"):
        plan = analysis.plan(
            budget=1, importance="sensitivity", compensate="identity", include=[name]
        )
        assert plan.steps[0].importance == pytest.approx(share / 2, rel=1e-9)


def test_an_output_that_stays_zero_has_not_changed() -> None:
    class Beside(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.relu(), x * 0

    x = points(40, 3).double()
    analysis = fxreduce.analyze(Beside().eval(), [x])
    plan = analysis.plan(budget=1, importance="sensitivity", compensate="identity")
    share = float((x - x.relu()).square().sum() / x.relu().square().sum())
    assert plan.steps[0].importance == pytest.approx(share / 2, rel=1e-9)


class Logarithm(nn.Module):
    """Without its first rectifier the output is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.bound, self.idle = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.idle((self.bound(x) + 1.5).log())


def test_an_output_that_is_no_longer_finite_is_infinitely_important(tmp_path: Path) -> None:
    analysis = fxreduce.analyze(Logarithm().eval(), [points(40, 3)])
    plan = analysis.plan(
        budget=1, importance="sensitivity", compensate="identity", include=["bound"]
    )
    assert plan.steps[0].importance == inf
    plan.save(tmp_path / "plan.json")
    assert fxreduce.Plan.load(tmp_path / "plan.json").steps == plan.steps
    plan = analysis.plan(budget=1, importance="sensitivity", compensate="identity")
    assert plan.sites == ("idle",)  # of a positive number: nothing changes
    assert plan.steps[0].importance == 0


def test_outputs_that_are_not_finite_are_traced_to_their_batch() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.relu() - 1).sqrt()

    batches = [points(5, 2).abs() + 1, points(5, 2), points(5, 2)]
    with pytest.raises(fxreduce.CalibrationError, match=r"must be finite; in batch 1 there are"):
        fxreduce.analyze(Root().eval(), batches).plan(budget=1, importance="sensitivity")


def test_a_model_without_numbers_at_its_output_is_refused_with_the_way_out() -> None:
    class Choice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().argmax(1)

    with pytest.raises(fxreduce.PlanError, match=r"must return floating-point tensors.*another"):
        fxreduce.analyze(Choice().eval(), [points(5, 2)]).plan(budget=1, importance="sensitivity")


def test_a_site_that_cannot_go_ranks_last_and_says_why() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.given, self.free = nn.ReLU(inplace=True), nn.ReLU()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.free(self.linear(self.given(x)))

    batches = [points(40, 3)]
    kept = batches[0].clone()
    plan = fxreduce.analyze(seeded(Overwriting), batches).plan(budget=1, importance="sensitivity")
    assert plan.sites == ("free",)
    (row,) = plan.refusals
    assert row.where == "given"
    assert row.reason.startswith("ranked last: it works in place, and x shares memory")
    assert torch.equal(batches[0], kept)
