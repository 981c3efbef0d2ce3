"""Refitting absorbs what removals change, and is left out where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxreduce
from fxreduce.planning import refit as refitting
from tests.models import Inverted, Residual, images, seeded, snapshot

BATCHES = images(32, 32, 32, 32, 32, 32)


def reduced(model: nn.Module, compensate: str, **options: object) -> GraphModule:
    return fxreduce.apply(model, BATCHES, compensate=compensate, progress=False, **options)  # type: ignore[arg-type]


def error(model: nn.Module, other: nn.Module, seed: int = 77) -> float:
    """On images that calibration has not seen."""
    (x,) = images(64, seed=seed)
    with torch.no_grad():
        expected, seen = model(x), other(x)
    return float((expected - seen).square().sum() / expected.square().sum())


@pytest.mark.parametrize(("make", "budget"), [(Residual, 2), (Inverted, 3), (Inverted, 2)])
def test_unseen_images_gain_too(make: Callable[[], nn.Module], budget: int) -> None:
    model, data = seeded(make), images(*[96] * 6)
    before = snapshot(model)
    errors = {
        each: error(model, fxreduce.apply(model, data, budget=budget, compensate=each))
        for each in ("channel", "refit")
    }
    assert errors["refit"] < errors["channel"]
    assert snapshot(model) == before


class Skip(nn.Module):
    """What a removed rectifier leaves wrong goes past the branch, through its skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.next = nn.Conv2d(8, 8, 1)
        self.branch = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.head = nn.Linear(8 * 8 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(self.relu(self.stem(x)))
        return self.head(torch.tanh(3 * (x + self.branch(x))).flatten(1))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_second_sweep_makes_up_for_what_a_skip_carries(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = seeded(Skip, seed), images(*[96] * 6)
    fitted = fxreduce.apply(model, data, budget=1, include=["relu"])
    monkeypatch.setattr(refitting, "_to_sums", lambda original, working, places: places)
    without = fxreduce.apply(model, data, budget=1, include=["relu"])
    assert error(model, fitted) < 0.95 * error(model, without)


def test_the_report_says_what_was_refitted() -> None:
    report = fxreduce.report(reduced(seeded(Residual), "refit", budget=2))
    assert "operators refitted: squared error of the output on held-out batches" in str(report)


def test_the_scope_keeps_what_no_removal_touches() -> None:
    model = seeded(Residual)
    plans = {
        scope: fxreduce.analyze(model, BATCHES).plan(
            budget=1, include=["relu"], compensate="refit", refit_scope=scope
        )
        for scope in ("merged", "downstream")
    }
    assert set(plans["merged"].weights) < set(plans["downstream"].weights)
    assert "head" not in plans["merged"].weights
    with pytest.raises(
        fxreduce.UnsupportedError, match="one of 'merged', 'downstream'; seen: 'all'"
    ):
        fxreduce.apply(model, BATCHES, budget=1, refit_scope="all")


def test_without_a_cache_the_weights_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Inverted)
    expected = fxreduce.analyze(model, BATCHES).plan(budget=3)
    monkeypatch.setattr(refitting, "CACHE", 0)
    found = fxreduce.analyze(model, BATCHES).plan(budget=3)
    assert list(found.weights) == list(expected.weights) != []
    for name, weights in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weights)


def test_a_judge_sees_the_refitted_model_and_ends_the_sequence() -> None:
    model = seeded(Inverted)
    seen: list[nn.Module] = []

    def evaluate(module: nn.Module) -> float:
        seen.append(module)
        return -error(model, module)

    whole = -evaluate(reduced(model, "refit", budget=3))
    budget = fxreduce.MaxDrop(whole / 2, evaluate)
    plan = fxreduce.analyze(model, BATCHES).plan(budget=budget, compensate="refit")
    assert 0 < len(plan.sites) < 3
    assert error(model, plan.apply(model)) <= whole / 2 * 1.01
    refused = {refusal.where: refusal.reason for refusal in plan.refusals}
    assert any("evaluate falls from" in reason for reason in refused.values())


def test_a_plan_carries_fitted_weights_for_the_model_that_they_fit(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="fitted weights are saved in its format")
    model = seeded(Residual)
    plan = fxreduce.analyze(model, BATCHES).plan(budget=2)
    assert plan.weights
    plan.save(tmp_path / "plan.json")
    loaded = fxreduce.Plan.load(tmp_path / "plan.json")
    ours, theirs = plan.apply(model), loaded.apply(model)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor)
    assert error(model, theirs) == error(model, reduced(model, "refit", budget=2))

    other = seeded(Residual, seed=5)
    report = fxreduce.report(loaded.apply(other))
    assert any("the fitted weights are left out" in each.reason for each in report.refusals)
    channel = fxreduce.analyze(model, BATCHES).plan(budget=2, compensate="channel").apply(other)
    assert error(other, loaded.apply(other)) == pytest.approx(error(other, channel), rel=1e-3)

    (weights,) = tmp_path.glob("plan-*.safetensors")
    weights.unlink()
    with pytest.raises(fxreduce.PlanError, match="keep the two together"):
        fxreduce.Plan.load(tmp_path / "plan.json")


def test_the_same_weights_serve_whatever_captured_the_model() -> None:
    model = seeded(Inverted)
    plan = fxreduce.analyze(model, BATCHES).plan(budget=3)
    exported = torch.export.export(
        model, (BATCHES[0],), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    for form in (torch.fx.symbolic_trace(model), exported):
        result = plan.apply(form)
        assert error(model, result) == pytest.approx(error(model, plan.apply(model)), rel=1e-3)
        assert not [each for each in fxreduce.report(result).refusals if each.rewrite == "refit"]
