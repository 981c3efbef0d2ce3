"""On held-out calibration data fitted weights never lose to maps, nor maps to the identity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxreduce
from fxreduce.calibration.loader import Loader
from fxreduce.planning.held_out import output_error
from fxreduce.planning.planner import HELD_OUT_EVERY
from fxreduce.planning.prepare import prepare
from tests.models import Functional, Inverted, Residual, Small, images, points, seeded

# What rounding of merged weights in float32 adds.
RELATIVE, ABSOLUTE = 1e-5, 1e-10
QUICK, MANY = 20, 200


def check(seed: int, make: Callable[[], nn.Module], batches: int, size: int, budget: float) -> None:
    model = seeded(make, seed)
    data = images(*[size] * batches, seed=seed)
    if make is Functional:
        data = [points(size, 6, seed + number) for number in range(batches)]
    _, calibration, _ = prepare(model, Loader(data, keep=True), None, None, False)
    calibration = calibration.hold_out(HELD_OUT_EVERY)
    analysis = fxreduce.analyze(model, data, progress=False)
    plans = {each: analysis.plan(budget=budget, compensate=each) for each in ("channel", "refit")}
    identity = fxreduce.linearize(model, plans["channel"].sites)
    found = {each: output_error(model, p.apply(model), calibration) for each, p in plans.items()}
    found["identity"] = output_error(model, identity, calibration)
    for better, worse in (("refit", "channel"), ("channel", "identity")):
        assert found[better] <= found[worse] * (1 + RELATIVE) + ABSOLUTE


NETWORKS = (
    st.integers(0, 2**16),
    st.sampled_from((Small, Residual, Inverted, Functional)),
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from((0.3, 0.6, 1.0)),
)


@settings(max_examples=QUICK)
@given(*NETWORKS)
def test_fitted_weights_never_lose_to_maps_nor_these_to_the_identity(
    seed: int, make: Callable[[], nn.Module], batches: int, size: int, budget: float
) -> None:
    check(seed, make, batches, size, budget)


@pytest.mark.zoo
@settings(max_examples=MANY)
@given(*NETWORKS)
def test_on_two_hundred_networks_they_never_lose(
    seed: int, make: Callable[[], nn.Module], batches: int, size: int, budget: float
) -> None:
    check(seed, make, batches, size, budget)


def test_maps_that_do_harm_on_held_out_data_are_dropped_and_the_report_says_so() -> None:
    """The map is fitted to points on both sides of 0; the held-out ones are positive."""
    model = seeded(lambda: nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.zero_()
    data = [points(64, 1), points(64, 1, seed=2), points(64, 1, seed=3).abs()]
    plan = fxreduce.analyze(model, data).plan(budget=1, compensate="channel")
    assert not plan.maps
    report = fxreduce.report(plan.apply(model))
    assert any("the identity takes the rectifiers' place" in r.reason for r in report.refusals)
    (held_out,) = data[2:]
    with torch.no_grad():
        torch.testing.assert_close(plan.apply(model)(held_out), model(held_out))
