"""Fits find the operator behind the data, stay near the one they have, and never do harm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxreduce.operators import ridge
from fxreduce.operators.affine import Conv, Refusal, apply
from fxreduce.operators.ridge import FREE, Equations, Fit, Tether, rows_for, too_large

CPU = torch.device("cpu")
GEOMETRIES = {
    "linear": {"weight": (5, 4)},
    "dense": {"weight": (5, 4, 3, 3), "padding": (1, 1)},
    "depthwise": {"weight": (4, 1, 3, 3), "groups": 4, "stride": (2, 2)},
    "grouped": {"weight": (6, 2, 3, 3), "groups": 2, "padding": (0, 1), "dilation": (2, 1)},
}


def conv_of(kind: str, seed: int = 0) -> Conv:
    generator = torch.Generator().manual_seed(seed)
    options = dict(GEOMETRIES[kind])
    weight = torch.randn(options.pop("weight"), generator=generator, dtype=torch.float64)
    bias = torch.randn(len(weight), generator=generator, dtype=torch.float64)
    return Conv(weight, bias, **options)


def inputs(kind: str, samples: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 4) if kind == "linear" else (samples, 4, 8, 8)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def fitted(start: Conv, x: Tensor, y: Tensor, every: int = 4, tether: Tether = FREE) -> Fit:
    equations = Equations(start, len(x) * y.shape[2:].numel(), CPU, tether)
    held_out = torch.arange(len(x)) % every == every - 1
    for part in torch.arange(len(x)).split(7):
        equations.add(x[part], y[part], torch.arange(y.shape[2:].numel()), held_out[part])
    return equations.solve()


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_the_operator_behind_the_data_is_found(kind: str) -> None:
    start, behind = conv_of(kind), conv_of(kind, seed=5)
    x = inputs(kind, 120)
    fit = fitted(start, x, apply(behind, x))
    fresh = inputs(kind, 10, seed=9)
    before = (apply(start, fresh) - apply(behind, fresh)).square().mean()
    after = (apply(fit.operator, fresh) - apply(behind, fresh)).square().mean()
    assert after < 1e-8 * before
    assert fit.after < 1e-8 * fit.before
    assert fit.before == pytest.approx(float(before), rel=0.5)


def test_what_is_right_already_stays() -> None:
    start, x = conv_of("dense"), inputs("dense", 40)
    fit = fitted(start, x, apply(start, x))
    assert fit.after <= fit.before < 1e-15
    torch.testing.assert_close(fit.operator.weight, start.weight)


@given(
    st.sampled_from(sorted(GEOMETRIES)), st.integers(1, 40), st.integers(0, 2**16), st.floats(0, 4)
)
def test_a_fit_is_never_worse_on_held_out_rows(
    kind: str, samples: int, seed: int, noise: float
) -> None:
    start, x = conv_of(kind, seed), inputs(kind, samples, seed + 1)
    y = apply(conv_of(kind, seed + 2), x)
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).double()
    fit = fitted(start, x, y)
    assert fit.after <= fit.before
    chosen = torch.arange(len(x)) % 4 == 3 if len(x) > 3 else torch.ones(len(x), dtype=torch.bool)
    own = (apply(start, x[chosen]) - y[chosen]).square().mean()
    assert fit.before == pytest.approx(float(own), rel=1e-6, abs=1e-9)
    assert bool(fit.operator.weight.isfinite().all())


def test_few_samples_pull_less_than_many() -> None:
    start, behind = conv_of("dense"), conv_of("dense", seed=5)
    x = inputs("dense", 4)
    x[:, 1:] = 0  # three channels of four say nothing
    fit = fitted(start, x, apply(behind, x))
    moved = (fit.operator.weight - start.weight).abs().amax((0, 2, 3))
    assert moved[0] > 0.1
    assert moved[1:].max() < 1e-6


def test_what_takes_too_much_memory_is_refused_with_the_figures() -> None:
    refusal = too_large(Conv(torch.empty(1, 3_000_000, device="meta")))
    assert isinstance(refusal, Refusal)
    assert "64 rows of 3000001 inputs and 1 outputs" in refusal.reason
    assert "take 1.4 GiB; the bound is 1 GiB" in refusal.reason
    assert too_large(conv_of("dense")) is None


def test_memory_and_time_bound_the_rows() -> None:
    narrow, wide = conv_of("dense"), Conv(torch.empty(10, 25088, device="meta"))
    assert rows_for(narrow, 10**9) == 4096
    assert rows_for(narrow, 100) == 100
    assert rows_for(wide, 10**9) == 2048
    assert rows_for(Conv(torch.empty(10, 10**6, device="meta")), 10**9) == 134


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_the_dual_form_gives_the_weights_of_the_normal_equations(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, x = conv_of(kind), inputs(kind, 40)
    y = apply(conv_of(kind, seed=5), x)
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).double()
    expected = fitted(start, x, y)
    monkeypatch.setattr(ridge, "OPERATIONS", 0)
    found = fitted(start, x, y)
    assert found.strength == expected.strength
    assert found.after == pytest.approx(expected.after)
    torch.testing.assert_close(found.operator.weight, expected.operator.weight)
    torch.testing.assert_close(found.operator.bias, expected.operator.bias)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_products_in_float32_cost_next_to_no_accuracy(kind: str) -> None:
    """On inputs that are far from centred and half of them zero, as rectifiers leave them."""
    start, behind = conv_of(kind), conv_of(kind, seed=5)
    x = (inputs(kind, 200) + 0.5).relu().float()
    y = apply(behind, x.double())
    y = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).double()
    fits = []
    for products in (torch.float32, torch.float64):
        equations = Equations(start, len(x) * y.shape[2:].numel(), CPU, products=products)
        positions = torch.arange(y.shape[2:].numel())
        equations.add(x, y.float(), positions, torch.arange(len(x)) % 4 == 3)
        fits.append(equations.solve())
    single, double = fits
    assert single.after == pytest.approx(double.after, rel=1e-3)
    fresh = inputs(kind, 10, seed=9).relu()
    ours, theirs = (apply(fit.operator, fresh) for fit in fits)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


def test_samples_in_parts_give_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    start, x = conv_of("dense"), inputs("dense", 20)
    y = apply(conv_of("dense", seed=5), x)
    whole = fitted(start, x, y)
    monkeypatch.setattr(ridge, "_CHUNK", 1)
    torch.testing.assert_close(fitted(start, x, y).operator.weight, whole.operator.weight)


@pytest.mark.parametrize("samples", [400, 12])  # the normal equations, and the dual form
def test_a_tether_keeps_a_fit_from_resting_on_small_differences(samples: int) -> None:
    generator = torch.Generator().manual_seed(2)
    common = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    x = common + 1e-3 * torch.randn(samples, 24, generator=generator, dtype=torch.float64)
    behind = Conv(300 * torch.randn(2, 24, generator=generator, dtype=torch.float64))
    start = Conv(torch.zeros(2, 24, dtype=torch.float64))
    free, tied = (fitted(start, x, apply(behind, x), tether=t) for t in (FREE, Tether(0.1, 1.0)))
    assert tied.strength >= 0.1
    assert free.after < tied.after < tied.before
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    moved = x + 0.3 * noise

    def error(fit: Fit) -> float:
        return float((apply(fit.operator, moved) - apply(behind, x)).square().mean())

    assert error(tied) < error(free)


def test_a_tether_beyond_all_strengths_has_its_own() -> None:
    assert Tether(least=100.0).strengths == (100.0,)
    assert Tether(least=0.1).strengths == (0.1, 1.0, 10.0)
