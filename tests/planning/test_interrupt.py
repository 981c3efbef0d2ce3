"""Ctrl-C while planning: what the budget has allowed so far is a plan."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxreduce
from tests.models import Residual, images, seeded

BATCHES = images(32, 32, 32)


def impatient(*values: float) -> Callable[[nn.Module], float]:
    """Says these values, of the original first, and is then interrupted."""
    left = list(values)

    def evaluate(module: nn.Module) -> float:
        if not left:
            raise KeyboardInterrupt
        return left.pop(0)

    return evaluate


def planned(*values: float, **options: object) -> fxreduce.Plan:
    budget = fxreduce.MaxDrop(0.1, impatient(*values))
    options = {"candidates": "sites"} | options
    analysis = fxreduce.analyze(seeded(Residual), BATCHES, progress=False)
    return analysis.plan(budget=budget, **options)


def test_removals_that_were_accepted_are_in_the_exceptions_plan() -> None:
    with pytest.raises(fxreduce.PlanInterrupted, match="the removals so far: ") as stopped:
        planned(1.0, 1.0, compensate="channel")
    plan = stopped.value.plan
    assert len(plan.sites) == 1
    assert "interrupted" in plan.stopped
    x = images(2, seed=9)[0]
    with torch.no_grad():
        assert plan.apply(seeded(Residual))(x).shape == seeded(Residual)(x).shape


def test_a_refitted_model_that_was_accepted_is_in_the_exceptions_plan() -> None:
    with pytest.raises(fxreduce.PlanInterrupted) as stopped:
        planned(1.0, 0.0, 1.0)  # all are too many, half of them are not; then more are tried
    plan = stopped.value.plan
    assert plan.sites
    assert plan.weights
    assert fxreduce.report(plan.apply(seeded(Residual))).removed == plan.sites


@pytest.mark.parametrize("compensate", ["identity", "refit"])
def test_without_anything_accepted_it_is_a_plain_interruption(compensate: str) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        planned(1.0, compensate=compensate)
    assert not isinstance(stopped.value, fxreduce.PlanInterrupted)
