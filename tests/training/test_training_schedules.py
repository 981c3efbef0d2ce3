"""Rates over the epochs, against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fxreduce.training.optimisers import make_optimiser, make_schedule
from fxreduce.training.settings import TrainingSettings


def rates(**values: object) -> list[float]:
    """The rate of every step, five steps an epoch."""
    settings = TrainingSettings.of({"rate": 1.0, **values})
    optimiser = make_optimiser(nn.Linear(1, 1), settings)
    schedule = make_schedule(optimiser, settings, 5)
    found = []
    for _ in range(settings.epochs * 5):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_multistep_falls_at_its_milestones() -> None:
    found = rates(epochs=4, milestones=[2, 3], factor=0.1)
    assert found == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)


def test_cosine_and_linear_fall_to_zero() -> None:
    steps = torch.arange(20, dtype=torch.float64)
    expected = (1 + torch.cos(math.pi * steps / 20)) / 2
    assert rates(epochs=4, schedule="cosine") == pytest.approx(expected.tolist())
    assert rates(epochs=4, schedule="linear") == pytest.approx((1 - steps / 20).tolist())


def test_a_constant_rate_stays() -> None:
    assert rates(epochs=2, schedule="constant") == [1.0] * 10


@pytest.mark.parametrize("schedule", ["constant", "multistep", "cosine", "linear"])
def test_a_warm_up_rises_linearly_and_leaves_the_rest_as_it_is(schedule: str) -> None:
    plain = rates(epochs=4, schedule=schedule, milestones=[2])
    warm = rates(epochs=4, schedule=schedule, milestones=[2], warmup=1)
    share = [0.01 + 0.99 * step / 5 for step in range(5)]
    assert warm[:5] == pytest.approx([a * b for a, b in zip(share, plain, strict=False)])
    assert warm[5:] == pytest.approx(plain[5:])


def test_one_cycle_peaks_after_its_warm_up() -> None:
    found = rates(epochs=10, schedule="onecycle", warmup=2)
    assert found.index(max(found)) in (9, 10)
    assert max(found) == pytest.approx(1.0, abs=0.01)
    assert found[-1] < 0.01
