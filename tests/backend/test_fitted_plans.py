"""Fitted weights on the graphs of torch.compile: for the model that they were fitted to."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.planning.fingerprint import digest
from tests.backend.compiling import Inner
from tests.checks import assert_close
from tests.models import Inverted, PlainBlock, Residual, Small, images, seeded

pytestmark = pytest.mark.usefixtures("no_grad")
MODELS = (Small, Residual, Inverted)


def fitted(make: Callable[[], nn.Module], budget: int = 2) -> tuple[nn.Module, fxreduce.Plan]:
    """A model in float64 and a plan with fitted weights."""
    model = seeded(make).double()
    batches = [batch.double() for batch in images(32, 32, 32)]
    plan = fxreduce.analyze(model, batches, progress=False).plan(budget=budget)
    assert plan.weights
    return model, plan


def unseen() -> Tensor:
    return images(5, seed=99)[0].double()


def change(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(1.1)


@pytest.mark.parametrize("make", MODELS)
def test_a_compiled_plan_has_the_fitted_weights(
    make: Callable[[], nn.Module], inner: Inner
) -> None:
    model, plan = fitted(make)
    compiled, x = torch.compile(model, backend=plan.backend(inner)), unseen()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(plan.apply(model, verify=False)(x), compiled(x))
    plain = replace(plan, weights={}, maps_replaced=False).apply(model, verify=False)
    assert (plain(x) - compiled(x)).abs().max() > 1e-4  # or the fit would not be seen
    assert inner.compilations == 1


def test_a_compiled_plan_merges_approximately_as_it_was_fitted(inner: Inner) -> None:
    model = seeded(PlainBlock).double()
    batches = [batch.double() for batch in images(32, 32, 32)]
    analysis = fxreduce.analyze(model, batches, progress=False)
    plan = analysis.plan(budget=fxreduce.Fidelity(0.0), include=["act"])
    assert plan.cropped
    compiled, x = torch.compile(model, backend=plan.backend(inner)), unseen()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(plan.apply(model, verify=False)(x), compiled(x))


@pytest.mark.parametrize("make", MODELS)
def test_other_weights_get_the_maps_and_the_first_ones_the_fit_again(
    make: Callable[[], nn.Module], inner: Inner
) -> None:
    model, plan = fitted(make)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    compiled, x = torch.compile(model, backend=plan.backend(inner)), unseen()
    first = compiled(x)
    change(model)
    with pytest.warns(UserWarning, match="not those that they were fitted to"):
        assert_close(plan.apply(model, verify=False)(x), compiled(x))
    model.load_state_dict(weights)
    assert_close(first, compiled(x))
    assert inner.compilations <= 2  # one with maps, one without


def test_a_second_model_gets_the_maps(inner: Inner) -> None:
    model, plan = fitted(Residual)
    other, x = seeded(Residual, 1).double(), unseen()
    backend = plan.backend(inner)
    assert_close(plan.apply(model, verify=False)(x), torch.compile(model, backend=backend)(x))
    with pytest.warns(UserWarning, match="not those that they were fitted to"):
        assert_close(plan.apply(other, verify=False)(x), torch.compile(other, backend=backend)(x))


def test_a_graph_that_merges_otherwise_gets_the_maps(inner: Inner) -> None:
    model, plan = fitted(Inverted, 3)
    backend = plan.backend(inner, disable=["fuse_chain"])
    compiled, x = torch.compile(model, backend=backend), unseen()
    with pytest.warns(UserWarning, match="merges in another way than the plan"):
        seen = compiled(x)
    assert_close(replace(plan, weights={}, maps_replaced=False).apply(model, verify=False)(x), seen)


def test_fitted_weights_are_not_given_to_an_operator_that_another_one_precedes() -> None:
    """Of two operators that were merged, the second one alone may have the merged one's shape."""

    def make() -> nn.Module:
        narrow = (nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
        return nn.Sequential(*narrow, nn.Linear(4, 3))

    model = seeded(make).double()
    batches = list(torch.randn(3, 64, 4, dtype=torch.float64))
    plan = fxreduce.analyze(model, batches, progress=False).plan(budget=1, include=["1"])
    assert plan.weights
    reduced = plan.apply(model, disable=["fuse_chain"])
    refusals = [each for each in fxreduce.report(reduced).refusals if each.rewrite == "refit"]
    assert any("merged otherwise" in each.reason for each in refusals)


def test_equal_backends_have_the_same_fitted_weights() -> None:
    (_, plan), (_, other) = fitted(Residual), fitted(Residual, 1)
    assert plan.backend("eager") == plan.backend("eager")
    assert plan.backend("eager") != other.backend("eager")
    first, *rest = plan.weights
    changed = {first: plan.weights[first] * 2, **{name: plan.weights[name] for name in rest}}
    assert plan.backend("eager") != replace(plan, weights=changed).backend("eager")


def test_a_hash_of_weights_is_the_same_whatever_captured_the_graph() -> None:
    model, x = seeded(Residual).double(), unseen()
    exported = torch.export.export(model, (x,))
    traced, again = fxreduce.capture(model), fxreduce.capture(exported)
    assert digest(traced) == digest(again)
    change(model)
    assert digest(fxreduce.capture(model)) != digest(traced)
