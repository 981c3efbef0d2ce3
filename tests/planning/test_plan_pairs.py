"""A plan and its weights are read together or not at all, and as they were written."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxreduce
from tests.models import Residual, Small, images, seeded

pytest.importorskip("safetensors", reason="fitted weights are saved in its format")
BATCHES = images(6, 6, 6)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(Residual)


@pytest.fixture(scope="module")
def plans(model: nn.Module) -> tuple[fxreduce.Plan, fxreduce.Plan]:
    """Two plans with fitted weights, which are not the same."""
    analysis = fxreduce.analyze(model, BATCHES)
    one, other = analysis.plan(budget=1), analysis.plan(budget=2)
    assert one.weights
    assert other.weights
    return one, other


def makes_the_same(plan: fxreduce.Plan, other: fxreduce.Plan, model: nn.Module) -> bool:
    ours, theirs = plan.apply(model), other.apply(model)
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return ours.code == theirs.code and all(torch.equal(a, b) for a, b in pairs)


def test_saving_over_a_plan_leaves_one_pair(
    plans: tuple[fxreduce.Plan, fxreduce.Plan], model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    for plan in (*plans, plans[0]):
        plan.save(path)
        assert len(os.listdir(tmp_path)) == 2
        assert makes_the_same(fxreduce.Plan.load(path), plan, model)


@pytest.mark.parametrize("step", ["weights", "plan"])
def test_a_crash_at_any_step_leaves_the_old_pair(
    plans: tuple[fxreduce.Plan, fxreduce.Plan],
    model: nn.Module,
    tmp_path: Path,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = plans
    path = tmp_path / "plan.json"
    old.save(path)
    replace = os.replace

    def crash(source: Any, target: Any) -> None:
        if (Path(target).suffix == ".json") == (step == "plan"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            new.save(path)
    assert makes_the_same(fxreduce.Plan.load(path), old, model)


def test_the_weights_of_another_plan_are_refused(
    plans: tuple[fxreduce.Plan, fxreduce.Plan], tmp_path: Path
) -> None:
    for plan, name in zip(plans, ("one", "other"), strict=True):
        (tmp_path / name).mkdir()
        plan.save(tmp_path / name / "plan.json")
    (mine,) = (tmp_path / "one").glob("*.safetensors")
    (its,) = (tmp_path / "other").glob("*.safetensors")
    mine.write_bytes(its.read_bytes())
    with pytest.raises(fxreduce.PlanError, match=r"named after weights that it does not hold"):
        fxreduce.Plan.load(tmp_path / "one" / "plan.json")


def test_a_file_of_someone_else_s_is_never_removed(
    plans: tuple[fxreduce.Plan, fxreduce.Plan], tmp_path: Path
) -> None:
    for name in ("../precious.safetensors", "precious.safetensors", "plan-/../x.safetensors"):
        (tmp_path / "precious.safetensors").write_text("mine")
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        (folder / "precious.safetensors").write_text("mine")
        (folder / "plan.json").write_text(json.dumps({"weights": name}))
        plans[0].save(folder / "plan.json")
        assert (tmp_path / "precious.safetensors").read_text() == "mine"
        assert (folder / "precious.safetensors").read_text() == "mine"


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a site": (lambda plan: plan["steps"][0].update(site="act"), "steps"),
    "an entropy": (lambda plan: plan["entropies"].update(act=0.0), "entropies"),
    "a compensation": (lambda plan: plan.update(compensate="identity"), "compensate"),
    "a map": (lambda plan: plan["maps"]["act2"].update(shift=[0.0] * 8), "maps"),
    "the version": (lambda plan: plan.update(torch="2.6.0"), "torch"),
    "a new entry": (lambda plan: plan.update(note="x"), "note"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_plan_is_refused_with_the_entry_that_differs(tmp_path: Path, edit: str) -> None:
    plan = fxreduce.analyze(seeded(Small), BATCHES).plan(budget=1, compensate="channel")
    path = tmp_path / "plan.json"
    plan.save(path)
    content = json.loads(path.read_text())
    change, entry = EDITS[edit]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(fxreduce.PlanError, match=rf"changed since it was written: its '{entry}'"):
        fxreduce.Plan.load(path)


def test_another_layout_of_the_same_json_is_no_edit(tmp_path: Path) -> None:
    plan = fxreduce.analyze(seeded(Small), BATCHES).plan(budget=1)
    path = tmp_path / "plan.json"
    plan.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert fxreduce.Plan.load(path).steps == plan.steps


def test_another_minor_version_of_torch_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    fxreduce.analyze(seeded(Small), BATCHES).plan(budget=1).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxreduce.Plan.load(path)
    monkeypatch.setattr(torch, "__version__", "2.99.1")
    with pytest.warns(UserWarning, match=r"written with torch 2\.\d+\.\S+, this is torch 2\.99\.1"):
        fxreduce.Plan.load(path)
