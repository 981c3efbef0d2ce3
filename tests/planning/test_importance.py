"""Importances: their values by hand, and what an importance of a third party's may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import erfc, inf, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.planning import importance as importances
from fxreduce.planning.forced_state import forcing_error
from fxreduce.planning.ranking import Rank, Stage
from tests.models import Ladder, Residual, Small, images, points, seeded, stored_inputs


def plan_of(model: nn.Module, batches: Any, **options: Any) -> fxreduce.Plan:
    return fxreduce.analyze(model, batches).plan(**({"compensate": "identity"} | options))


def importance_of(model: nn.Module, batches: Any, name: str, **options: Any) -> float:
    """The importance of the one site of a model."""
    (step,) = plan_of(model, batches, importance=name, budget=1, **options).steps
    return step.importance


@pytest.mark.parametrize("compensate", ["identity", "channel"])
def test_residual_is_the_unexplained_share_of_the_variance_pooled_over_channels(
    compensate: str,
) -> None:
    z = torch.tensor([[-1.0, 2, -2], [0, 3, -1], [1, 4, -3]], dtype=torch.float64)
    # First channel: outputs 0, 0, 1; variance 2/3 and c²/m2_z = 1/2, so that 1/6 is unexplained.
    # Second: always on, variance 2, all explained. Third: always off, no variance.
    expected = (1 / 6) / (2 / 3 + 2)
    model = nn.Sequential(nn.ReLU()).eval()
    seen = importance_of(model, [z], "residual", compensate=compensate)
    assert seen == pytest.approx(expected, rel=1e-12)


def test_residual_is_what_least_squares_leaves() -> None:
    z = points(300, 4).double() * torch.tensor([0.2, 1.0, 3.0, 10.0])
    out = nn.functional.gelu(z)
    left = 0.0
    for channel in range(4):
        design = torch.stack([z[:, channel], torch.ones(300, dtype=torch.float64)], 1)
        fit = torch.linalg.lstsq(design, out[:, channel]).solution
        left += float((out[:, channel] - design @ fit).square().sum())
    expected = left / float((out - out.mean(0)).square().sum())
    seen = importance_of(nn.Sequential(nn.GELU()).eval(), [z], "residual")
    assert seen == pytest.approx(expected, rel=1e-9)
    assert 0 < seen < 1


def test_a_constant_output_has_no_residual() -> None:
    z = -torch.rand(5, 3) - 1
    assert importance_of(nn.Sequential(nn.ReLU()).eval(), [z], "residual") == 0


def phi(x: float) -> float:
    """The standard normal distribution function."""
    return erfc(-x / sqrt(2)) / 2


@pytest.mark.parametrize(
    ("beta", "gamma", "upper", "expected"),
    [
        (1.0, 2.0, inf, phi(-0.5)),
        (-1.0, 2.0, inf, phi(-0.5)),
        (-1.0, -2.0, inf, phi(-0.5)),
        (0.0, 3.0, inf, 0.5),
        (2.0, 0.0, inf, 0.0),
        (0.0, 0.0, inf, 0.0),
        (-2.0, 0.0, inf, 0.0),
        (5.0, 2.0, 6.0, phi(-2.5) + phi(-0.5)),
        (7.0, 2.0, 6.0, phi(-3.5) + phi(0.5)),
        (-5.0, 2.0, 6.0, phi(-2.5)),
        (5.0, 0.0, 6.0, 0.0),
        (7.0, 0.0, 6.0, 1.0),
    ],
)
def test_the_error_of_a_forced_state_is_that_of_tlc(
    beta: float, gamma: float, upper: float, expected: float
) -> None:
    seen = forcing_error(torch.tensor([beta]), torch.tensor([gamma]), upper)
    assert seen.dtype == torch.float64
    assert float(seen) == pytest.approx(expected, rel=1e-12)


def normed(rectifier: nn.Module, affine: bool = True) -> nn.Module:
    """A batch-norm with weights of its own before a rectifier."""
    norm = nn.BatchNorm1d(3, affine=affine)
    if affine:
        with torch.no_grad():
            norm.bias.copy_(torch.tensor([1.0, -2.0, 5.5]))
            norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0]))
    return nn.Sequential(norm, rectifier).eval()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (normed(nn.ReLU()), (phi(-1) + phi(-4) + phi(-2.75)) / 3),
        (normed(nn.GELU()), (phi(-1) + phi(-4) + phi(-2.75)) / 3),
        (normed(nn.ReLU6()), (phi(-1) + phi(-5) + phi(-4) + phi(-2.75) + phi(-0.25)) / 3),
        (normed(nn.ReLU(), affine=False), 0.5),
    ],
)
def test_batchnorm_is_the_mean_over_channels_and_needs_no_data(
    model: nn.Module, expected: float
) -> None:
    exported = torch.export.export(model, (points(7, 3),))
    for form, seed in ((model, 1), (model, 2), (exported, 3)):
        seen = importance_of(form, [points(7, 3, seed) * seed], "batchnorm")
        assert seen == pytest.approx(expected, rel=1e-6)


def undecided() -> nn.Module:
    """A model whose one batch-norm says nothing of the rectifier behind it: β = 0."""
    model = seeded(Small)
    nn.init.zeros_(model.norm.bias)
    return model


def test_a_site_without_batch_norm_ranks_last_by_measured_moments_and_the_report_says_so() -> None:
    model, batches = undecided(), images(20)
    plan = plan_of(model, batches, importance="batchnorm", budget=2)
    assert plan.sites == ("act", "act2")
    first, second = plan.steps
    assert (first.importance, first.unjudged) == (0.5, None)
    model.act = nn.Identity()
    with torch.no_grad(), stored_inputs(model) as stored:
        model(batches[0])
    z = stored["act2"][0].transpose(0, 1).flatten(1).double()
    ratios = (z.mean(1) / z.std(1, correction=0)).abs()
    assert second.importance == pytest.approx(sum(map(phi, -ratios)) / len(z), rel=1e-5)
    assert second.importance < first.importance  # last all the same
    said = [line for line in plan.decisions.lines if line.startswith("act2 ")]
    assert "ranked last: no batch-norm feeds it; instead of its β and γ" in said[0]
    assert "ranked last" not in plan.decisions.lines[0]


def test_a_site_that_ranked_last_and_stayed_has_a_row_in_the_report() -> None:
    reduced = fxreduce.apply(undecided(), images(20), importance="batchnorm", budget=1)
    rows = [each for each in fxreduce.report(reduced).refusals if each.rewrite == "plan"]
    assert [row.where for row in rows] == ["act2"]
    assert rows[0].reason.startswith("ranked last: no batch-norm feeds it")


def test_the_shortcut_belongs_to_the_pre_activation_behind_a_sum() -> None:
    plan = plan_of(seeded(Residual), images(9), importance="batchnorm", budget=2)
    assert plan.sites == ("relu", "relu#1")
    assert [step.unjudged is None for step in plan.steps] == [True, False]


@dataclass(frozen=True)
class Backwards:
    """A third party's importance that sees the graph: the last node goes first."""

    moments: bool = False

    def rank(self, stage: Stage) -> Mapping[str, Rank]:
        names = [node.target for node in stage.graph_module.graph.find_nodes(op="call_module")]
        return {name: Rank(-names.index(name)) for name in stage.sites}


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(importances._NAMED)
    fxreduce.registry.register_importance("backwards", Backwards())
    fxreduce.registry.register_importance("by name", lambda site: int(site.name[-1]))
    yield
    importances._NAMED.clear()
    importances._NAMED.update(before)


@pytest.mark.usefixtures("registered")
def test_an_importance_can_be_registered_and_given() -> None:
    model, batches = seeded(Ladder), [points(50, 1)]
    for given in (Backwards(), "backwards"):
        assert plan_of(model, batches, importance=given, budget=2).sites == ("acts.3", "acts.2")
    assert plan_of(model, batches, importance="by name", budget=2).sites == ("acts.0", "acts.1")
    with pytest.raises(fxreduce.PlanError, match=r"'batchnorm', 'backwards', 'by name'; seen: 'x'"):
        plan_of(model, batches, importance="x")


def test_what_is_no_importance_cannot_be_registered() -> None:
    with pytest.raises(fxreduce.PlanError, match=r"a callable or one of 'entropy'.*seen: 3"):
        fxreduce.registry.register_importance("three", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({}, r"returns a Rank for every site; for 0 it is None"),
        ({"0": 0.5}, r"returns a Rank for every site; for 0 it is 0\.5"),
        ({"0": Rank(float("nan"))}, r"a number for every site.*for 0 it is nan"),
    ],
)
def test_an_importance_that_ranks_a_site_badly_is_refused(
    ranks: dict[str, Any], message: str
) -> None:
    class Bad:
        moments = False

        def rank(self, stage: Stage) -> dict[str, Any]:
            return ranks

    with pytest.raises(fxreduce.PlanError, match=message):
        plan_of(nn.Sequential(nn.ReLU()).eval(), [points(5, 2)], importance=Bad())


def test_a_function_of_one_site_may_read_its_moments_whatever_compensates() -> None:
    plan = plan_of(
        seeded(Ladder),
        [points(50, 1).double().float()],
        budget=1.0,
        importance=lambda site: -float(site.statistics.moments.mean_z),
    )
    assert plan.sites == ("acts.0", "acts.2", "acts.3", "acts.1")  # shifts 3, 1.5, 0.8, 0.2


def test_infinite_importance_is_a_number() -> None:
    plan = plan_of(
        seeded(Ladder),
        [points(50, 1)],
        budget=4,
        importance=lambda site: {"0": inf, "1": 0.0, "2": -inf, "3": 1.0}[site.name[-1]],
    )
    assert plan.sites == ("acts.2", "acts.1", "acts.3", "acts.0")


class Given(nn.Module):
    """The rectifiers of `Ladder` without its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


def test_residual_of_a_functional_site_is_found_too() -> None:
    z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    assert importance_of(Given().eval(), [z], "residual") == pytest.approx(1 / 4, rel=1e-12)
