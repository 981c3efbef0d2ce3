"""Where speed is asked for, convolutions that removals join become one of their size, fitted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxreduce
from tests.models import PlainBlock, images, seeded

BATCHES = images(16, 16, 16, 16, pixels=10)
ANY = fxreduce.Fidelity(0.0)  # it bears all, and asks for speed


@pytest.fixture(scope="module")
def plan() -> fxreduce.Plan:
    return made()


def made(**options: object) -> fxreduce.Plan:
    options = {"budget": ANY, "include": ["act"]} | options
    return fxreduce.analyze(seeded(PlainBlock), BATCHES, progress=False).plan(**options)


def test_a_block_with_its_skip_becomes_one_convolution_of_its_size(plan: fxreduce.Plan) -> None:
    assert plan.cropped == ("bn2",)
    reduced = plan.apply(seeded(PlainBlock))
    convs = [m for m in reduced.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(3, 3), (3, 3)]
    assert not any("add" in node.name for node in reduced.graph.nodes)


def test_the_report_says_what_is_approximate_and_how_far(plan: fxreduce.Plan) -> None:
    report = fxreduce.report(plan.apply(seeded(PlainBlock)))
    assert "bn2 is approximate: one convolution in place of two" in str(report)
    assert report.macs_after < 0.75 * report.macs_before


def test_fitting_absorbs_most_of_what_cropping_leaves_out(plan: fxreduce.Plan) -> None:
    model, x = seeded(PlainBlock), images(64, pixels=10, seed=9)[0]
    with torch.no_grad():
        expected = model(x)
        fitted = (plan.apply(model)(x) - expected).square().sum()
        spread = (expected - expected.mean(0)).square().sum()
        linear = (fxreduce.linearize(model, ["act"])(x) - expected).square().sum()
    assert fitted < linear
    assert fitted < 0.5 * spread


@pytest.mark.parametrize(
    "options",
    [{"exact": True}, {"candidates": "sites"}, {"compensate": "channel"}, {"budget": 1}],
)
def test_merges_are_exact_where_that_is_asked_for_or_speed_is_not(options: dict) -> None:
    plan = made(**options)
    assert plan.sites == ("act",)
    assert plan.cropped == ()


def test_a_saved_plan_crops_as_it_did(plan: fxreduce.Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    loaded = fxreduce.Plan.load(tmp_path / "plan.json")
    assert loaded.cropped == plan.cropped
    x = images(2, pixels=10)[0]
    with torch.no_grad():
        assert torch.equal(loaded.apply(seeded(PlainBlock))(x), plan.apply(seeded(PlainBlock))(x))


def test_another_model_of_the_architecture_is_merged_exactly(plan: fxreduce.Plan) -> None:
    torch.manual_seed(5)
    other = PlainBlock().eval()
    reduced = plan.apply(other)
    kernels = [m.kernel_size for m in reduced.modules() if isinstance(m, nn.Conv2d)]
    assert len(kernels) == 3
    assert any("left out" in refusal.reason for refusal in fxreduce.report(reduced).refusals)


def test_convolutions_that_stood_together_before_stay_two() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(400, 3)).eval()
    plan = fxreduce.analyze(model, BATCHES, progress=False).plan(budget=ANY)
    assert plan.sites == ("2",)
    assert plan.cropped == ()
