"""Plans on disk: a round trip loses nothing, and what is no plan is refused with what to do."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.operators.affine import Operator
from fxreduce.operators.setting import Setting
from tests.models import Residual, Small, images, seeded

BATCHES = images(6, 6, 6)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(Small)


@pytest.fixture(scope="module", params=["identity", "channel"])
def plan(request: pytest.FixtureRequest, model: nn.Module) -> fxreduce.Plan:
    return fxreduce.analyze(model, BATCHES).plan(budget=2, compensate=request.param)


@pytest.fixture
def content(plan: fxreduce.Plan, tmp_path: Path) -> dict[str, Any]:
    plan.save(tmp_path / "plan.json")
    return json.loads((tmp_path / "plan.json").read_text())


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def test_a_saved_plan_is_loaded_unchanged(plan: fxreduce.Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    loaded = fxreduce.Plan.load(str(path))
    for name in (
        "steps", "sites", "regions", "compensate", "stopped", "entropies", "architecture",
        "refusals", "inputs", "cost", "reads",
    ):  # fmt: skip
        assert getattr(loaded, name) == getattr(plan, name), name
    assert list(loaded.maps) == list(plan.maps)
    for name, fitted in plan.maps.items():
        assert same(loaded.maps[name].scale, fitted.scale)
        assert same(loaded.maps[name].shift, fitted.shift)
        assert loaded.maps[name].rank == fitted.rank
    assert bool(plan.maps) == (plan.compensate == "channel")


def test_a_loaded_plan_makes_the_same_bits(
    plan: fxreduce.Plan, model: nn.Module, tmp_path: Path
) -> None:
    plan.save(tmp_path / "plan.json")
    ours, theirs = plan.apply(model), fxreduce.Plan.load(tmp_path / "plan.json").apply(model)
    assert ours.code == theirs.code
    assert all(map(same, ours.state_dict().values(), theirs.state_dict().values()))


def test_the_file_is_json_with_a_schema_and_no_pickle(content: dict[str, Any]) -> None:
    assert content["schema"] == 3
    assert [step["site"] for step in content["steps"]] == ["act2", "act"]
    assert content["cost"] == "flops"


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 0.1])
def test_an_infinite_importance_is_json_and_comes_back(
    model: nn.Module, tmp_path: Path, value: float
) -> None:
    analysis = fxreduce.analyze(model, BATCHES)
    plan = analysis.plan(budget=1, importance=lambda site: value, compensate="identity")
    path = tmp_path / "plan.json"
    plan.save(path)

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    assert fxreduce.Plan.load(path).steps == plan.steps
    assert plan.steps[0].importance == value


def test_why_a_site_ranked_last_is_saved(tmp_path: Path) -> None:
    plan = fxreduce.analyze(seeded(Small), BATCHES).plan(budget=2, importance="batchnorm")
    plan.save(tmp_path / "plan.json")
    loaded = fxreduce.Plan.load(tmp_path / "plan.json")
    assert loaded.steps == plan.steps
    assert loaded.decisions.lines == plan.decisions.lines
    assert "ranked last: no batch-norm feeds it" in loaded.decisions.lines[1]


def test_passes_can_be_switched_off_when_a_plan_is_applied(model: nn.Module) -> None:
    plan = fxreduce.analyze(model, BATCHES).plan(budget=1)
    assert "norm" not in dict(plan.apply(model).named_modules())
    for disable in ("fuse_chain", ("fuse_chain", "fuse_parallel")):
        kept = plan.apply(model, disable=disable)
        assert isinstance(kept.norm, nn.BatchNorm2d)
        torch.testing.assert_close(kept(BATCHES[0]), plan.apply(model)(BATCHES[0]))
    with pytest.raises(fxreduce.UnsupportedError, match=r"names of passes .* seen: 'magic'"):
        plan.apply(model, disable="magic")


def test_saving_twice_writes_the_same_bytes(plan: fxreduce.Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "one")
    fxreduce.Plan.load(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_failure_leaves_the_old_file_and_nothing_else(
    plan: fxreduce.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(fxreduce.PlanError, match=r"cannot be written to .*no space left"):
        plan.save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_folder_that_is_not_there_is_named(plan: fxreduce.Plan, tmp_path: Path) -> None:
    with pytest.raises(fxreduce.PlanError, match=r"cannot be written to .*nowhere"):
        plan.save(tmp_path / "nowhere" / "plan.json")


def test_a_cost_model_that_no_name_leads_back_to_cannot_be_saved(
    model: nn.Module, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Nameless:
        name: str = "nameless"

        def cost(self, operator: Operator, setting: Setting) -> float:
            return 1.0

    plan = fxreduce.analyze(model, BATCHES).plan(budget=0, cost=Nameless())
    with pytest.raises(
        fxreduce.FxReduceError, match=r"one of 'flops', 'latency'; seen: 'nameless'"
    ):
        plan.save(tmp_path / "plan.json")
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(fxreduce.PlanError, match=r"the plan cannot be read: .*absent\.json"):
        fxreduce.Plan.load(tmp_path / "absent.json")
    with pytest.raises(fxreduce.PlanError, match=r"the plan cannot be read"):
        fxreduce.Plan.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"holds no plan: it is not JSON"),
        (b'{"schema": 3, "steps"', r"holds no plan: it is not JSON"),
        (b"\x80\x04\x95pickle", r"holds no plan: it is not JSON"),
        (b"[]", r'a plan has "schema": 3, this file has None\. Make it again'),
        (b"{}", r'a plan has "schema": 3, this file has None'),
        (b'{"schema": 0}', r'a plan has "schema": 3, this file has 0\. Make it again with fxredu'),
        (b'{"schema": 4}', r'a plan has "schema": 3, this file has 4'),
        (b'{"schema": 3}', r"is a damaged plan: .*\. Make it again"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text)
    with pytest.raises(fxreduce.PlanError, match=message):
        fxreduce.Plan.load(path)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a step without its entropy": lambda plan: plan["steps"][0].pop("entropy"),
    "an importance that is no number": lambda plan: plan["steps"][0].update(importance="much"),
    "steps that are no list": lambda plan: plan.update(steps=3),
    "a step that is no object": lambda plan: plan.update(steps=["act"]),
    "no architecture": lambda plan: plan.pop("architecture"),
    "maps that are no object": lambda plan: plan.update(maps=[1]),
    "a map of words": lambda plan: plan.update(
        maps={"act": {"scale": ["a"], "shift": [0.0], "rank": 2}}
    ),
    "a map without its rank": lambda plan: plan.update(
        maps={"act": {"scale": [1.0], "shift": [0.0]}}
    ),
    "regions that are no lists": lambda plan: plan.update(regions=[1]),
    "inputs that are no object": lambda plan: plan.update(inputs=[]),
    "a refusal of another form": lambda plan: plan.update(refusals=[{"why": "x"}]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_refused(content: dict[str, Any], damage: str, tmp_path: Path) -> None:
    DAMAGES[damage](content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(fxreduce.PlanError, match=r"plan\.json is a damaged plan: .+Make it again"):
        fxreduce.Plan.load(tmp_path / "plan.json")


def test_new_weights_of_the_same_architecture_take_the_plan(plan: fxreduce.Plan) -> None:
    other = seeded(Small, seed=7)
    reduced = plan.apply(other)
    unmerged = fxreduce.linearize(other, plan.sites)
    if plan.compensate == "identity":
        torch.testing.assert_close(reduced(BATCHES[0]), unmerged(BATCHES[0]))
    assert fxreduce.report(reduced).removed == plan.sites
    assert fxreduce.report(reduced).max_error <= 1e-5
    assert reduced.head.weight.shape == (4, 8)


def with_gelu() -> nn.Module:
    model = Small()
    model.act2 = nn.GELU()
    return model


def with_one_more() -> nn.Module:
    model = Small()
    model.pool = nn.Sequential(model.pool, nn.ReLU())
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Residual, r"position 0 it has 'site act: relu', the model 'site relu: relu'"),
        (with_gelu, r"position 1 it has 'site act2: relu', the model 'site act2: gelu'"),
        (with_one_more, r"the model 'site pool\.1: relu'\. Make a new plan for this model"),
        (lambda: Small(classes=5), r"'parameter head\.bias: \(4,\)', the model .*\(5,\)"),
        (lambda: Small(width=6), r"'parameter head\.weight: \(4, 8\)', the model .*\(4, 6\)"),
    ],
)
def test_a_plan_for_another_model_is_refused_with_the_first_difference(
    plan: fxreduce.Plan, make: Callable[[], nn.Module], message: str
) -> None:
    model = seeded(make)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(fxreduce.PlanError, match=message):
        plan.apply(model)
    assert all(map(torch.equal, model.state_dict().values(), state.values()))


def test_the_plan_fits_whatever_captured_the_model(plan: fxreduce.Plan, model: nn.Module) -> None:
    x = BATCHES[0]
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes)
    expected = plan.apply(model)(x)
    for form in (torch.fx.symbolic_trace(model), exported):
        torch.testing.assert_close(plan.apply(form)(x), expected)


def test_a_plan_made_with_a_forward_of_the_user_s_own_is_saved_and_applied(
    model: nn.Module, tmp_path: Path
) -> None:
    batches = [{"deep": {"image": batch}} for batch in BATCHES]
    analysis = fxreduce.analyze(model, batches, forward=lambda m, b: m(b["deep"]["image"]))
    analysis.plan(budget=1).save(tmp_path / "plan.json")
    reduced = fxreduce.Plan.load(tmp_path / "plan.json").apply(model)
    assert fxreduce.report(reduced).removed == ("act2",)
    assert fxreduce.report(reduced).max_error is None
