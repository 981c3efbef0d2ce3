"""fxreduce.linearize: identity and channel maps, unmerged and trainable."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxreduce
from tests.models import Residual, Small, by_channel, images, points, seeded, stored_inputs

BATCHES = images(6, 3, 6)
X = images(5, seed=9)[0]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(Small)


@pytest.fixture(scope="module")
def analysis(model: nn.Module) -> fxreduce.Analysis:
    return fxreduce.analyze(model, BATCHES)


def test_identity_deletes_the_rectifier_and_nothing_else(model: nn.Module) -> None:
    linear = fxreduce.linearize(model, ["act"])
    expected = copy.deepcopy(model)
    expected.act = nn.Identity()
    torch.testing.assert_close(linear(X), expected(X), rtol=0, atol=0)
    assert isinstance(linear.norm, nn.BatchNorm2d)
    assert not hasattr(linear, "act")
    assert hasattr(linear, "act2")


def test_one_site_may_be_given_by_its_name_alone(model: nn.Module) -> None:
    one, listed = fxreduce.linearize(model, "act2"), fxreduce.linearize(model, ["act2"])
    assert torch.equal(one(X), listed(X))


def test_no_site_leaves_the_model_as_it_is(model: nn.Module) -> None:
    torch.testing.assert_close(fxreduce.linearize(model, [])(X), model(X), rtol=0, atol=0)


def test_channel_maps_are_the_least_squares_fit(
    model: nn.Module, analysis: fxreduce.Analysis
) -> None:
    linear = fxreduce.linearize(model, ["act2"], "channel", analysis)
    with torch.no_grad(), stored_inputs(model) as stored:
        for batch in BATCHES:
            model(batch)
    z = torch.cat([by_channel(each, 1) for each in stored["act2"]]).double().numpy()
    fitted = linear.get_submodule("act2_linear")
    for channel, column in enumerate(z.T):
        design = np.stack([column, np.ones_like(column)], 1)
        (slope, shift), *_ = np.linalg.lstsq(design, np.maximum(column, 0), rcond=None)
        assert fitted.weight[channel].item() == pytest.approx(slope, abs=1e-5)
        assert fitted.bias[channel].item() == pytest.approx(shift, abs=1e-5)


def test_always_on_becomes_the_identity_and_always_off_a_constant() -> None:
    model = nn.Sequential(nn.Linear(1, 3), nn.LeakyReLU(0.0), nn.Linear(3, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([90.0, -90.0, 0.0]))
    x = points(500, 1)
    analysis = fxreduce.analyze(model, [x])
    fitted = fxreduce.linearize(model, ["1"], "channel", analysis).get_submodule("1_linear")
    weight, bias = fitted.weight.tolist(), fitted.bias.tolist()
    assert weight[0] == pytest.approx(1, abs=1e-5)
    assert bias[0] == pytest.approx(0, abs=1e-3)
    assert weight[1] == pytest.approx(0, abs=1e-6)
    assert bias[1] == pytest.approx(0, abs=1e-6)
    assert 0.3 < weight[2] < 0.7
    assert bias[2] > 0.2


def test_a_site_of_entropy_0_is_replaced_exactly_by_its_channel_map(
    model: nn.Module,
) -> None:
    model = copy.deepcopy(model).double()
    with torch.no_grad():  # half of the channels always on, half always off
        model.norm.bias.copy_(torch.tensor([40.0, -40.0] * 4))
    batches = [batch.double() for batch in BATCHES]
    analysis = fxreduce.analyze(model, batches)
    assert analysis.sites[0].entropy == 0
    linear = fxreduce.linearize(model, ["act"], "channel", analysis)
    torch.testing.assert_close(linear(X.double()), model(X.double()), rtol=1e-9, atol=1e-9)
    identity = fxreduce.linearize(model, ["act"])
    assert not torch.allclose(identity(X.double()), model(X.double()))


@pytest.mark.parametrize("compensate", ["identity", "channel"])
def test_gradients_flow_and_training_changes_the_result(
    model: nn.Module, analysis: fxreduce.Analysis, compensate: str
) -> None:
    linear = fxreduce.linearize(model, ["act", "act2"], compensate, analysis).train()
    optimiser = torch.optim.SGD(linear.parameters(), 0.1)
    loss = linear(X).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in linear.parameters())
    optimiser.step()
    assert linear(X).square().sum() < loss
    assert all(p.grad is None for p in model.parameters())


def test_frozen_weights_stay_frozen() -> None:
    model = seeded(Small)
    model.stem.weight.requires_grad_(False)
    linear = fxreduce.linearize(model, ["act"])
    assert not linear.stem.weight.requires_grad
    assert linear.mix.weight.requires_grad


def test_a_linearised_model_can_be_fused_and_computes_the_same(
    model: nn.Module, analysis: fxreduce.Analysis
) -> None:
    linear = fxreduce.linearize(model, ["act", "act2"], "channel", analysis)
    fused = fxreduce.fuse(linear, example_inputs=X)
    torch.testing.assert_close(fused(X), linear(X), rtol=1e-4, atol=1e-6)
    assert fxreduce.report(fused).operators_after < fxreduce.report(fused).operators_before


def test_each_call_of_a_shared_module_is_replaced_by_its_own_map() -> None:
    model = seeded(Residual)
    analysis = fxreduce.analyze(model, BATCHES)
    linear = fxreduce.linearize(model, ["relu", "relu#1"], "channel", analysis)
    maps = [linear.get_submodule(name) for name in ("relu_linear", "relu_1_linear")]
    assert not torch.equal(maps[0].weight, maps[1].weight)
    first = maps[0](model.bn1(model.conv1(X)))
    expected = model.head(maps[1](model.bn2(model.conv2(first)) + first).mean((2, 3)))
    torch.testing.assert_close(linear(X), expected)


class Namesakes(nn.Module):
    """Sites relu, relu#1 and relu_1, and a layer where a map of relu would stand."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.relu_linear, self.two = (nn.Linear(4, 4) for _ in range(3))
        self.relu, self.relu_1 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu_1(self.two(self.relu(self.relu_linear(self.relu(self.one(x))))))


def test_maps_of_sites_with_like_names_do_not_take_each_other_s_place() -> None:
    model, x = seeded(Namesakes), points(60, 4)
    analysis = fxreduce.analyze(model, [x])
    linear = fxreduce.linearize(model, ["relu", "relu#1", "relu_1"], "channel", analysis)
    expected = x
    for layer, site in zip((model.one, model.relu_linear, model.two), analysis.sites, strict=True):
        fitted = site.affine_fit()
        expected = layer(expected).double() * fitted.scale + fitted.shift
        expected = expected.float()
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("compensate", ["identity", "channel"])
def test_rectifiers_behind_one_another_can_all_go(compensate: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Dropout(), nn.LeakyReLU()))
    x = points(60, 3)
    analysis = fxreduce.analyze(model, [x])
    linear = fxreduce.linearize(model, ["1", "3"], compensate, analysis)
    expected = model[0](x)
    if compensate == "channel":
        for fitted in (site.affine_fit() for site in analysis.sites):
            expected = expected * fitted.scale.float() + fitted.shift.float()
    torch.testing.assert_close(linear(x), expected)
    reduced = fxreduce.apply(model, [x], budget=2, compensate=compensate)
    assert fxreduce.report(reduced).operators_after == 1


def test_maps_of_token_rectifiers_lie_along_the_last_axis() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)))
    x = torch.randn(5, 6, 4)  # as many tokens as channels
    linear = fxreduce.linearize(model, ["1"], "channel", fxreduce.analyze(model, [x]))
    z = model[0](x).detach().double().flatten(0, 1)
    y = nn.functional.gelu(z)
    slope = ((z - z.mean(0)) * (y - y.mean(0))).sum(0) / (z - z.mean(0)).square().sum(0)
    fitted = linear.get_submodule("1_linear")
    torch.testing.assert_close(fitted.weight, slope.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(fitted(z.float()), z.float() * fitted.weight + fitted.bias)


@pytest.mark.parametrize(
    ("sites", "options", "error", "message"),
    [
        (["nope"], {}, "PlanError", r"the model has no site 'nope'; its sites are act, act2"),
        ("nope", {}, "PlanError", r"the model has no site 'nope'"),
        (["act"], {"compensate": "magic"}, "UnsupportedError", r"'identity', 'channel'; seen: 'm"),
        (["act"], {"compensate": "channel"}, "PlanError", r"pass statistics, what fxreduce\.anal"),
    ],
)
def test_what_cannot_be_replaced_is_refused(
    model: nn.Module, sites: list[str], options: dict[str, str], error: str, message: str
) -> None:
    with pytest.raises(getattr(fxreduce, error), match=message):
        fxreduce.linearize(model, sites, **options)


def test_statistics_of_another_model_or_without_moments_are_refused(model: nn.Module) -> None:
    other = fxreduce.analyze(seeded(Residual), BATCHES)
    with pytest.raises(fxreduce.PlanError, match=r"the analysis has no site 'act'; its sites are"):
        fxreduce.linearize(model, ["act"], "channel", other)
    bare = fxreduce.analyze(model, BATCHES, moments=False)
    with pytest.raises(fxreduce.CalibrationError, match=r"needs the moments.*moments=True"):
        fxreduce.linearize(model, ["act"], "channel", bare)


def test_a_site_that_shares_memory_with_what_is_read_later_is_refused() -> None:
    class Overwriting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu_()

    with pytest.raises(fxreduce.PlanError, match=r"relu cannot be removed: it works in place"):
        fxreduce.linearize(Overwriting().eval(), ["relu"])
