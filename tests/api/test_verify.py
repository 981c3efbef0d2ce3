"""fxreduce.verify and the checks behind every pass: what is wrong is found, and its pass named."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.passes import pipeline
from fxreduce.passes.base import Pass
from fxreduce.passes.drop_identities import DropIdentities
from tests.api.wrong_passes import Breaks, Doubles, Malforms, Overwrites, Reshapes, Restless
from tests.models import Residual, Small, images, seeded

BATCHES = images(6, 6, 6)
X = images(5, seed=9)[0]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(Small)


@pytest.fixture(autouse=True)
def registered_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_REGISTERED", list(pipeline._REGISTERED))


WRONG = pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        (Doubles(), r"the output moved by [0-9.]+ relative, [0-9.e-]+ is allowed"),
        (Doubles(edits=()), r"the output moved by"),
        (Overwrites(), r"the output moved by"),
        (Reshapes(), r"an output of shape \(\d, 4\) became \(\d, 3\)"),
        (Breaks(), r"cannot be multiplied"),
        (Malforms(), r"left a malformed graph"),
    ],
)


@WRONG
def test_apply_finds_a_wrong_pass_and_names_it(model: nn.Module, wrong: Pass, seen: str) -> None:
    fxreduce.registry.register_pass(wrong)
    with pytest.raises(fxreduce.EquivalenceError, match=f"pass '{wrong.name}' .*({seen})"):
        fxreduce.apply(model, BATCHES, budget=1)


@WRONG
def test_fuse_with_example_inputs_finds_a_wrong_pass_and_names_it(
    model: nn.Module, wrong: Pass, seen: str
) -> None:
    fxreduce.registry.register_pass(wrong)
    with pytest.raises(fxreduce.EquivalenceError, match=f"pass '{wrong.name}' .*({seen})"):
        fxreduce.fuse(model, example_inputs=X)


@WRONG
def test_a_saved_plan_finds_a_wrong_pass_on_inputs_of_its_own(
    model: nn.Module, wrong: Pass, seen: str
) -> None:
    plan = fxreduce.analyze(model, BATCHES).plan(budget=1)
    fxreduce.registry.register_pass(wrong)
    with pytest.raises(fxreduce.EquivalenceError, match=f"pass '{wrong.name}' .*({seen})"):
        plan.apply(model)


def test_the_error_says_how_to_go_on_and_that_works(model: nn.Module) -> None:
    fxreduce.registry.register_pass(Doubles())
    with pytest.raises(
        fxreduce.EquivalenceError, match=r"Switch it off with disable=\('doubles',\)"
    ):
        fxreduce.apply(model, BATCHES, budget=1)
    reduced = fxreduce.apply(model, BATCHES, budget=1, disable=("doubles",))
    pipeline._REGISTERED.clear()
    assert torch.equal(reduced(X), fxreduce.apply(model, BATCHES, budget=1)(X))


@pytest.mark.parametrize("wrong", [Doubles(edits=()), Overwrites()])
def test_verify_finds_what_was_not_checked_and_names_the_pass(
    model: nn.Module, wrong: Pass
) -> None:
    fxreduce.registry.register_pass(wrong)
    result = fxreduce.verify(model, fxreduce.fuse(model), X)
    assert (result.ok, result.broken_by) == (False, wrong.name)
    assert result.max_rel > 1e-3


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [(Reshapes(edits=()), r"shape \(5, 4\) became \(5, 3\)"), (Breaks(edits=()), "does not run")],
)
def test_verify_refuses_what_cannot_be_compared(model: nn.Module, wrong: Pass, seen: str) -> None:
    fxreduce.registry.register_pass(wrong)
    fused = fxreduce.fuse(model)
    with pytest.raises(fxreduce.EquivalenceError, match=seen):
        fxreduce.verify(model, fused, X)


@pytest.mark.parametrize("endless", [Doubles(), Restless()])
def test_a_pass_that_never_comes_to_an_end_is_stopped(model: nn.Module, endless: Pass) -> None:
    fxreduce.registry.register_pass(endless)
    with pytest.raises(
        fxreduce.EquivalenceError, match=rf"{endless.name} take turns .* with: because\. A pass mu"
    ):
        fxreduce.fuse(model)


def test_a_wrong_pass_among_those_before_the_removal_is_named(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DropIdentities, "run", lambda self, given: Doubles().run(given))
    with pytest.raises(fxreduce.EquivalenceError, match=r"pass 'drop_identities' must not change"):
        fxreduce.apply(model, BATCHES, budget=1)


def test_a_tampered_weight_is_found_and_blamed_on_no_pass(model: nn.Module) -> None:
    fused = fxreduce.fuse(model)
    assert fxreduce.verify(model, fused, X).ok
    with torch.no_grad():
        fused.head.bias[1] += 0.01
    result = fxreduce.verify(model, fused, X)
    assert (result.ok, result.broken_by) == (False, None)
    assert result.max_abs == pytest.approx(0.01, rel=1e-4)
    assert result.max_rel == pytest.approx(0.01 / model(X).abs().max().item(), rel=1e-3)


def test_a_reduction_is_no_equivalence_and_its_removal_is_named(model: nn.Module) -> None:
    reduced = fxreduce.apply(model, BATCHES, budget=1, compensate="identity")
    result = fxreduce.verify(model, reduced, X)
    assert (result.ok, result.broken_by) == (False, "linearise")
    unmerged = fxreduce.linearize(model, fxreduce.report(reduced).removed)
    result = fxreduce.verify(unmerged, reduced, X)
    assert result.ok
    assert result.max_rel < result.tolerance


def test_a_model_equals_itself_in_every_dialect(model: nn.Module) -> None:
    exported = torch.export.export(model, (X,))
    for other in (model, torch.fx.symbolic_trace(model), exported):
        result = fxreduce.verify(model, other, X)
        assert result.ok
        assert result.max_rel < 1e-12
        assert fxreduce.verify(other, model, (X,)).ok
        assert fxreduce.verify(other, model, {"image": X}).ok


def test_the_tolerance_can_be_given(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight *= 1.001
    assert not fxreduce.verify(model, other, X).ok
    result = fxreduce.verify(model, other, X, rtol=0.01)
    assert result.ok
    assert result.tolerance == 0.01
    assert not fxreduce.verify(model, other, X, rtol=0.0).ok


def test_a_forward_of_the_user_s_own_is_called_on_the_inputs(model: nn.Module) -> None:
    result = fxreduce.verify(
        model, copy.deepcopy(model), {"deep": X}, forward=lambda m, b: m(b["deep"])
    )
    assert result.ok


def test_outputs_of_another_structure_or_shape_are_an_error(model: nn.Module) -> None:
    class Pair(Small):
        def forward(self, image: Tensor) -> Any:
            return super().forward(image), image

    with pytest.raises(fxreduce.EquivalenceError, match=r"different structures"):
        fxreduce.verify(model, seeded(Pair), X)
    with pytest.raises(fxreduce.EquivalenceError, match=r"shape \(5, 4\) became \(5, 5\)"):
        fxreduce.verify(model, seeded(Residual), X)


def test_nan_on_one_side_is_a_deviation(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias[0] = float("nan")
    assert not fxreduce.verify(model, other, X).ok
    assert not fxreduce.verify(other, model, X).ok
    assert fxreduce.verify(other, copy.deepcopy(other), X).ok


def test_inputs_that_only_one_model_takes_are_an_error_of_that_model(model: nn.Module) -> None:
    other = seeded(lambda: nn.Sequential(nn.Conv2d(4, 4, 1)))
    with pytest.raises(fxreduce.CaptureError, match=r"before does not run on the inputs: Given"):
        fxreduce.verify(other, model, X)
    with pytest.raises(fxreduce.EquivalenceError, match=r"after does not run on inputs that befo"):
        fxreduce.verify(model, other, X)


def test_neither_model_nor_inputs_are_changed(model: nn.Module) -> None:
    x, state = X.clone(), copy.deepcopy(model.state_dict())
    other = copy.deepcopy(model)
    fxreduce.verify(model, other, x)
    assert torch.equal(x, X)
    assert all(map(torch.equal, model.state_dict().values(), state.values()))
    assert other.head.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_check_runs_in_float64_whatever_the_model_s_dtype(dtype: torch.dtype) -> None:
    model = seeded(Small).to(dtype)
    reduced = fxreduce.apply(model, [batch.to(dtype) for batch in BATCHES], budget=0)
    limits = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}
    assert fxreduce.report(reduced).max_error < limits[dtype]


def test_only_exact_passes_with_names_of_their_own_can_be_registered() -> None:
    @dataclass(frozen=True)
    class Inexact(Doubles):
        name: ClassVar[str] = "inexact"
        exact: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Impostor(Doubles):
        name: ClassVar[str] = "fuse_chain"

    with pytest.raises(fxreduce.UnsupportedError, match=r"only exact passes .* 'inexact' is not"):
        fxreduce.registry.register_pass(Inexact())
    with pytest.raises(fxreduce.UnsupportedError, match=r"'fuse_chain' is a pass of fxreduce"):
        fxreduce.registry.register_pass(Impostor())
