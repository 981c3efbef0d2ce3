"""What fxreduce.apply returns, and that it leaves the model as it was."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import fxreduce
from tests.models import Functional, Residual, Small, images, points, seeded, snapshot

BATCHES = images(6, 6, 6)
X = images(5, seed=9)[0]


def export(model: nn.Module) -> ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (BATCHES[0],), dynamic_shapes=shapes, strict=False)


FORMS = pytest.mark.parametrize("form", [lambda m: m, torch.fx.symbolic_trace, export])


def wider(model: nn.Module) -> nn.Module:
    """The model with hooks, frozen weights and a buffer that nothing reads."""
    model.head.weight.requires_grad_(False)
    model.register_buffer("unread", torch.arange(3))
    model.head.register_forward_hook(lambda *_: None)
    model.stem.register_full_backward_hook(lambda *_: None)
    return model


@FORMS
def test_the_model_is_unchanged_bit_for_bit(form: Callable[[nn.Module], Any]) -> None:
    model = form(wider(seeded(lambda: Small(inplace=True))))
    before = snapshot(model)
    analysis = fxreduce.analyze(model, BATCHES)
    plan = analysis.plan(budget=2)
    plan.apply(model)
    fxreduce.apply(model, BATCHES, budget=1)
    fxreduce.fuse(model, example_inputs=X)
    fxreduce.capture(model, X)
    fxreduce.linearize(model, ["act"], "channel", analysis)
    fxreduce.verify(model, model, X)
    assert snapshot(model) == before


def test_the_result_shares_no_memory_with_the_model() -> None:
    model = seeded(Residual)
    results = [
        fxreduce.apply(model, BATCHES, budget=0),
        fxreduce.fuse(model),
        fxreduce.capture(model),
        fxreduce.linearize(model, []),
        fxreduce.analyze(model, BATCHES).plan(budget=1).apply(model),
    ]
    theirs = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    for result in results:
        ours = {t.untyped_storage().data_ptr() for t in (*result.parameters(), *result.buffers())}
        assert not ours & theirs


@FORMS
def test_the_result_is_a_graph_module_in_eval_mode_with_gradients_on(
    form: Callable[[nn.Module], Any],
) -> None:
    reduced = fxreduce.apply(form(seeded(Small)), BATCHES, budget=1)
    assert isinstance(reduced, GraphModule)
    assert not any(module.training for module in reduced.modules())
    assert all(parameter.requires_grad for parameter in reduced.parameters())
    reduced.graph.lint()
    assert reduced(X).shape == (5, 4)


@FORMS
@pytest.mark.parametrize("compensate", ["identity", "channel"])
@pytest.mark.parametrize("budget", [0, 1, 2])
def test_merged_equals_unmerged(
    form: Callable[[nn.Module], Any], budget: int, compensate: str
) -> None:
    model, batches = seeded(Small).double(), [batch.double() for batch in BATCHES]
    plan = fxreduce.analyze(model, batches).plan(budget=budget, compensate=compensate)
    unmerged = copy.deepcopy(model)
    for site in plan.sites:
        unmerged.set_submodule(site, Map(plan.maps[site]) if plan.maps else nn.Identity())
    x = X.double()
    torch.testing.assert_close(plan.apply(model)(x), unmerged(x), rtol=1e-9, atol=1e-12)


class Map(nn.Module):
    def __init__(self, fitted: Any) -> None:
        super().__init__()
        self.scale, self.shift = (t.view(-1, 1, 1) for t in (fitted.scale, fitted.shift))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.scale + self.shift


class Signature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(
        self, left: Tensor, right: Tensor, scale: float = 2.0, *, shift: float = 0.5
    ) -> dict[str, Any]:
        x = (self.one(left) + self.two(right) * scale).relu() + shift
        return {"scores": x, "pair": (x.sum(), [x.mean()])}


def test_the_call_signature_and_the_form_of_the_output_are_the_model_s() -> None:
    model, (left, right) = seeded(Signature), (points(6, 3), points(6, 3, seed=2))
    reduced = fxreduce.apply(model, [(left, right)], budget=0)
    names = list(inspect.signature(model.forward).parameters)
    assert list(inspect.signature(reduced.forward).parameters) == names
    for args, kwargs in (
        ((left, right), {}),
        ((left, right, 3.0), {"shift": 1.0}),
        ((left,), {"right": right}),
        ((), {"right": right, "left": left, "scale": -1.0}),
    ):
        expected, seen = model(*args, **kwargs), reduced(*args, **kwargs)
        assert expected.keys() == seen.keys()
        assert type(seen["pair"]) is tuple
        assert type(seen["pair"][1]) is list
        torch.testing.assert_close(seen["scores"], expected["scores"])


def test_an_exported_program_keeps_its_keyword_call_and_its_output_form() -> None:
    model, (left, right) = seeded(Signature), (points(6, 3), points(6, 3, seed=2))
    exported = torch.export.export(model, (left,), {"right": right})
    reduced = fxreduce.apply(
        exported, [(left, right)], budget=0, forward=lambda m, b: m(b[0], right=b[1])
    )
    torch.testing.assert_close(
        reduced(left, right=right)["scores"], model(left, right=right)["scores"]
    )


def test_names_of_untouched_modules_are_kept() -> None:
    model = seeded(Residual)
    reduced = fxreduce.apply(model, BATCHES, budget=0)
    state, kept = reduced.state_dict(), model.state_dict()
    assert {"conv1", "conv2", "relu", "head"} <= dict(reduced.named_modules()).keys()
    assert state["head.weight"].shape == kept["head.weight"].shape
    assert torch.equal(state["head.weight"], kept["head.weight"])
    assert not any(name.startswith("bn") for name in state)


def test_hooks_of_inner_modules_run_on_in_the_result() -> None:
    model, seen = seeded(Small), []
    model.head.register_forward_hook(lambda *_: seen.append("head"))
    reduced = fxreduce.apply(model, BATCHES, budget=1)
    seen.clear()
    reduced(X)
    assert seen == ["head"]
    assert any("hooks" in refusal.reason for refusal in fxreduce.report(reduced).refusals)


def test_a_result_survives_a_deep_copy_with_its_report() -> None:
    reduced = fxreduce.apply(seeded(Small), BATCHES, budget=1)
    copied = copy.deepcopy(reduced)
    assert torch.equal(copied(X), reduced(X))
    assert fxreduce.report(copied) == fxreduce.report(reduced)


def test_the_state_of_a_result_loads_into_another_result_of_the_plan() -> None:
    model, other = seeded(Small), seeded(Small, seed=3)
    plan = fxreduce.analyze(model, BATCHES).plan(budget=1)
    reduced, target = plan.apply(model), plan.apply(other)
    buffer = io.BytesIO()
    torch.save(reduced.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(target(X), reduced(X))


@pytest.mark.parametrize("make", [Small, Residual])
def test_a_result_can_be_pickled_whole_but_then_has_no_report(make: type[nn.Module]) -> None:
    reduced = fxreduce.apply(seeded(make), BATCHES, budget=1)
    buffer = io.BytesIO()
    torch.save(reduced, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(X), reduced(X))
    with pytest.raises(fxreduce.UnsupportedError, match=r"belongs to what fxreduce\.apply"):
        fxreduce.report(loaded)


def test_a_result_can_be_exported_compiled_and_reduced_again() -> None:
    model = seeded(Small)
    reduced = fxreduce.apply(model, BATCHES, budget=1)
    exported = torch.export.export(reduced, (X,))
    torch.testing.assert_close(exported.module()(X), reduced(X))
    compiled = torch.compile(reduced, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), reduced(X))
    again = fxreduce.apply(reduced, BATCHES, budget=1)
    assert fxreduce.report(again).removed == ("act",)
    assert fxreduce.report(again).sites[0].name == "act"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_result_has_the_model_s_dtype(dtype: torch.dtype) -> None:
    model = seeded(Small).to(dtype)
    reduced = fxreduce.apply(model, [batch.to(dtype) for batch in BATCHES], budget=1)
    assert {parameter.dtype for parameter in reduced.parameters()} == {dtype}
    assert reduced(X.to(dtype)).dtype == dtype


def test_a_model_without_rectifiers_is_merged_all_the_same() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)))
    reduced = fxreduce.apply(model, [points(7, 4)])
    report = fxreduce.report(reduced)
    assert (report.sites, report.removed, report.operators_after) == ((), (), 1)
    torch.testing.assert_close(reduced(points(7, 4)), model(points(7, 4)))


def test_passes_can_be_switched_off_by_name() -> None:
    model = seeded(Small)
    for disable in ("fuse_chain", ("fuse_chain",), {"fuse_chain", "fuse_parallel"}):
        reduced = fxreduce.apply(model, BATCHES, budget=1, disable=disable)
        assert isinstance(reduced.norm, nn.BatchNorm2d)
    assert "norm" not in dict(fxreduce.apply(model, BATCHES, budget=1).named_modules())


def test_a_forward_of_the_user_s_own_serves_planning_and_checks() -> None:
    model = seeded(Functional)
    batches = [{"deep": [points(9, 6)]}, {"deep": [points(3, 6, seed=2)]}]
    reduced = fxreduce.apply(
        model, batches, budget=3, forward=lambda module, batch: module(batch["deep"][0])
    )
    assert fxreduce.report(reduced).max_error <= 1e-5
    assert fxreduce.report(reduced).operators_after == 1


def test_without_verification_there_is_no_error_to_report() -> None:
    reduced = fxreduce.apply(seeded(Small), BATCHES, budget=1, verify=False)
    assert fxreduce.report(reduced).max_error is None


def test_a_device_is_taken_by_name_and_the_model_stays_where_it_is() -> None:
    reduced = fxreduce.apply(seeded(Small), BATCHES, budget=1, device="cpu", progress=False)
    assert {parameter.device.type for parameter in reduced.parameters()} == {"cpu"}
