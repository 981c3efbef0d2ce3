"""Merges that do not pay together are undone, and the report says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import fxreduce
from fxreduce.graph.latency import LatencyCost
from fxreduce.operators.affine import Operator
from fxreduce.operators.setting import Setting
from fxreduce.planning import payoff

X = torch.randn(2, 3, 8, 8)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()


@dataclass(frozen=True)
class Rising:
    """Every operator seems dearer than the one before: merges seem to pay until it is summed up."""

    name: str = "rising"
    seen: list[Operator] = field(default_factory=list)

    def cost(self, operator: Operator, setting: Setting) -> float:
        self.seen.append(operator)
        return float(10 ** (len(self.seen) // 4))


@pytest.mark.parametrize("how", ["fuse", "apply"])
def test_merges_that_cost_more_as_a_whole_are_undone_and_reported(how: str) -> None:
    model, cost = network(), Rising()
    if how == "fuse":
        result = fxreduce.fuse(model, cost, example_inputs=X)
    else:
        result = fxreduce.apply(model, [X], budget=0, cost=cost, progress=False)
    report = fxreduce.report(result)
    assert report.operators_after == report.operators_before == 2
    assert "all merges are undone, as together they do not pay" in report.refusals[-1].reason
    assert "(rising)" in report.refusals[-1].reason
    with torch.no_grad():
        assert torch.equal(result(X), model(X))


@pytest.mark.parametrize("merged_seconds", [1e-3, 2e-3])
def test_latency_is_judged_by_the_clock(
    monkeypatch: pytest.MonkeyPatch, merged_seconds: float
) -> None:
    def clock(calls: Sequence[object], device: torch.device, *, rounds: int) -> list[float]:
        return [1.5e-3, merged_seconds]

    monkeypatch.setattr(payoff, "median_latencies", clock)
    cost = LatencyCost(cache=None, rounds=3)
    # The batch-norm's own time is certain not to be less than nothing.
    monkeypatch.setattr(LatencyCost, "costs", lambda self, candidates: [1.0] * len(candidates))
    report = fxreduce.report(fxreduce.fuse(network(), cost, example_inputs=X))
    undone = [each for each in report.refusals if "ms by the clock" in each.reason]
    assert bool(undone) == (merged_seconds > 1.5e-3)
    assert report.operators_after == 1 + bool(undone)
