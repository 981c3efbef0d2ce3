"""Every method to its end on a tiny network, and the options of the loop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce import schedules
from fxreduce.errors import CaptureError, PlanError, ScheduleError
from fxreduce.graph.modules import ChannelAffine
from fxreduce.graph.rectifiers import find_sites
from fxreduce.schedules.rule import Scores, Stage
from tests.checks import assert_close
from tests.models import entropy_of, snapshot
from tests.schedules.scheduling import SITES, Task, mixed, never

METHODS = ("easier", "egp", "nepenthe", "tlc", "layer_folding")


def scheduled(method: str = "easier", task: Task | None = None, **options: Any) -> Any:
    task = task or Task()
    call = getattr(schedules, method)
    given = {"train": task.train, "evaluate": task.evaluate, "progress": False} | options
    return call(mixed(), task.loader, **given)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_to_its_end_and_merges_exactly(method: str, variant: str) -> None:
    options: dict[str, Any] = {"variant": variant, "drop": 1.0}
    if method == "layer_folding":
        options |= {"pull": 50.0 if variant == "paper" else 0.25}  # as there are few steps
    if method in ("egp", "nepenthe"):
        options |= {"part": 0.9, "rounds": 4}
    task = Task()
    result = scheduled(method, task, **options)
    assert result.removed, result.table()
    assert result.trainings == task.trainings
    assert len(find_sites(result.model)) == len(SITES) - len(result.removed) == result.best.left
    merged = result.merged()
    with torch.no_grad():
        assert_close(result.model(task.images), merged(task.images))
    report = fxreduce.report(merged)
    assert set(report.removed) == set(result.removed)
    assert report.operators_after < report.operators_before
    assert task.evaluate(result.model) == result.best.accuracy


@pytest.mark.parametrize("method", ["easier", "tlc"])
def test_without_a_limit_all_sites_go(method: str) -> None:
    result = scheduled(method, drop=float("inf"))
    assert set(result.removed) == set(SITES)
    assert result.stopped == "no site is left that can be removed"


def test_the_model_stays_what_it_was() -> None:
    task, model = Task(), mixed()
    before = snapshot(model)
    schedules.easier(model, task.loader, train=task.train, evaluate=task.evaluate, drop=1.0)
    assert snapshot(model) == before


def accuracies(*values: float) -> Any:
    """An evaluation that returns these, one after the other."""
    left = iter(values)
    return lambda module: next(left)


def test_the_round_that_falls_too_far_is_the_last_and_does_not_count() -> None:
    result = scheduled(train=never, evaluate=accuracies(0.9, 0.9, 0.89, 0.7), drop=0.1)
    assert [each.allowed for each in result.rounds] == [True, True, True, False]
    assert result.stopped == "the accuracy falls from 0.9 to 0.7, by more than 0.1"
    assert result.dense == 0.9
    assert (result.best.number, result.last.number) == (2, 3)
    assert result.removed == result.rounds[1].removed + result.rounds[2].removed
    assert len(find_sites(result.model)) == 3
    assert len(find_sites(result.last_model)) == 2
    assert len(fxreduce.report(result.merged("last")).removed) == 3


def test_a_fall_of_just_the_limit_counts() -> None:
    result = scheduled(train=never, evaluate=accuracies(0.75, 0.5, 0.25), drop=0.25)
    assert [each.allowed for each in result.rounds] == [True, True, False]


def test_where_no_round_counts_the_dense_network_is_the_result() -> None:
    result = scheduled(train=never, evaluate=accuracies(0.9, 0.1), drop=0.1)
    assert result.removed == ()
    assert len(find_sites(result.model)) == len(SITES)


def test_a_model_that_is_trained_is_not_trained_before_the_first_round() -> None:
    task = Task()
    result = scheduled(task=task, trained=True, rounds=2, drop=1.0)
    assert [each.trainings for each in result.rounds] == [0, 1, 1]
    assert task.trainings == 2


def test_rounds_are_trained_by_a_function_of_their_own_where_there_is_one() -> None:
    task = Task()
    told: list[str] = []

    def gently(module: nn.Module) -> None:
        told.append("again")
        task.train(module, rate=0.001)

    def train(module: nn.Module) -> None:
        told.append("dense")
        task.train(module)

    result = scheduled(task=task, train=train, retrain=gently, rounds=2, drop=1.0)
    assert told == ["dense", "again", "again"]
    assert [each.trainings for each in result.rounds] == [1, 1, 1]


def test_sites_are_chosen_by_globs() -> None:
    result = scheduled(drop=1.0, include=["relu*"], exclude="relu#1")
    assert set(result.removed) == {"relu", "relu#2"}


def test_a_budget_ends_a_schedule() -> None:
    result = scheduled(drop=1.0, budget=2)
    assert result.stopped == "2 are removed, as the budget says"
    assert len(result.removed) == 2


def test_a_budget_on_the_entropy_ends_a_schedule_before_a_removal() -> None:
    result = scheduled(drop=1.0, budget=fxreduce.EntropyBelow(0.0))
    assert len(result.rounds) == 1
    assert "not below 0" in result.stopped


def test_a_budget_that_looks_at_the_network_rejects_a_round() -> None:
    budget = fxreduce.MaxDrop(0.5, lambda module: float(len(find_sites(module))))  # type: ignore[arg-type]
    result = scheduled(drop=1.0, budget=budget)
    assert [each.allowed for each in result.rounds] == [True, False]
    assert result.removed == ()


def test_the_code_of_easier_measures_the_last_epoch_of_training_in_train_mode() -> None:
    task = Task()
    seen: list[Tensor] = []
    rounds: list[list[Tensor]] = []

    def train(module: nn.Module) -> None:
        gelu = module.get_submodule("gelu")
        hook = gelu.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        task.train(module, epochs=3)
        hook.remove()
        rounds.append(seen[-3:])  # three batches make the last epoch
        seen.clear()

    result = scheduled(task=task, train=train, variant="code", rounds=1)
    expected = torch.stack([entropy_of(z, 1, code=True) for z in rounds[0]]).mean()
    assert result.rounds[1].scores["gelu"] == pytest.approx(float(expected), abs=1e-7)


def test_channel_maps_take_the_sites_places_and_are_trained() -> None:
    result = scheduled(drop=1.0, compensate="channel", rounds=2)
    maps = [each for each in result.model.modules() if isinstance(each, ChannelAffine)]
    assert len(maps) == 2
    assert all(each.weight.requires_grad for each in maps)
    merged = result.merged()
    with torch.no_grad():
        assert_close(result.model(Task().images), merged(Task().images))


def test_refitting_brings_the_network_back_to_what_it_computed() -> None:
    task = Task(count=192)
    outputs = {}
    for compensate in ("identity", "refit"):
        result = scheduled(
            task=task, train=never, drop=1.0, rounds=1, compensate=compensate, include="relu#1"
        )
        with torch.no_grad():
            outputs[compensate] = result.model(task.images)
    with torch.no_grad():
        dense = mixed()(task.images)
    errors = {name: float((each - dense).square().mean()) for name, each in outputs.items()}
    assert errors["refit"] < 0.5 * errors["identity"]


def test_fitted_rows_that_a_batch_norm_reads_keep_their_norm_and_compute_what_was_fitted() -> None:
    task = Task(count=192)
    dense, outputs = mixed(), dict[str, Tensor]()
    result = scheduled(task=task, train=never, drop=1.0, rounds=1, refit=True, include="relu")
    rows = [
        each.get_submodule("conv1").weight.detach().flatten(1) for each in (dense, result.model)
    ]
    torch.testing.assert_close(*(each.norm(dim=1) for each in rows))
    assert float((rows[0] - rows[1]).norm()) > 0.1 * float(rows[0].norm())
    for name, module in (("dense", dense), ("refitted", result.model)):
        keep = partial(outputs.setdefault, name)
        module.get_submodule("norm1").register_forward_hook(lambda _, __, y, keep=keep: keep(y))
        with torch.no_grad():
            module(task.images)
    apart = (outputs["dense"] - outputs["refitted"]).square().mean()
    assert float(apart) < 0.5 * float(outputs["dense"].var())


def test_fitted_weights_are_left_out_where_they_lower_the_accuracy() -> None:
    given: dict[str, Any] = {"train": never, "drop": 1.0, "rounds": 1, "include": "relu#1"}
    given["task"] = Task(count=192)
    plain = scheduled(evaluate=accuracies(0.9, 0.5), **given)
    result = scheduled(evaluate=accuracies(0.9, 0.5, 0.4, 0.5), refit=True, **given)
    state, expected = result.model.state_dict(), plain.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    said = result.rounds[1].refused["the whole graph"]
    assert said == "the weights stay, as fitting lowers the accuracy from 0.5 to 0.4"
    fitted = scheduled(evaluate=accuracies(0.9, 0.5, 0.5, 0.5), refit=True, **given)
    assert not torch.equal(fitted.model.state_dict()["conv2.weight"], expected["conv2.weight"])
    assert "the whole graph" not in fitted.rounds[1].refused


def test_a_network_that_was_refitted_merges_exactly() -> None:
    task = Task()
    result = scheduled(task=task, drop=1.0, rounds=2, refit=True)
    merged = result.merged()
    with torch.no_grad():
        assert_close(result.model(task.images), merged(task.images))


def test_rewinding_goes_back_to_the_initial_or_the_dense_weights() -> None:
    task = Task()
    heads: list[Tensor] = []

    def train(module: nn.Module) -> None:
        heads.append(module.get_submodule("head").weight.detach().clone())
        task.train(module)

    for rewind, same in (("initial", [0, 1, 2]), ("dense", [1, 2]), (None, [])):
        heads.clear()
        scheduled(task=task, train=train, drop=1.0, rounds=2, rewind=rewind)
        assert len(heads) == 3
        for place in same[1:]:
            assert torch.equal(heads[same[0]], heads[place])
        if rewind is None:
            assert not torch.equal(heads[1], heads[2])


def test_rewinding_keeps_the_masks() -> None:
    result = scheduled("egp", rounds=2, rewind="dense")
    layers = [each for each in result.model.modules() if hasattr(each, "weight_mask")]
    assert layers
    for layer in layers:
        assert bool((layer.weight[layer.weight_mask == 0] == 0).all())


def test_training_again_learns_from_the_dense_network() -> None:
    task = Task()
    taught: list[bool] = []

    def train(module: nn.Module) -> None:
        teacher = schedules.teacher(nn.Sequential(module))  # as a wrapper would hold it
        taught.append(teacher is not None)
        names = [name for name, _ in module.named_parameters()]
        assert not any("teacher" in name for name in names)
        task.train(module)

    result = scheduled(
        task=task, train=train, drop=1.0, rounds=2, distillation=schedules.Distillation()
    )
    assert taught == [False, True, True]
    assert len(result.rounds) == 3


def test_without_a_teacher_distilling_changes_no_loss() -> None:
    loss = torch.tensor(1.5)
    assert schedules.distil(nn.Linear(2, 2), loss, torch.randn(1, 2), torch.randn(1, 2)) is loss
    assert schedules.auxiliary_loss(nn.Linear(2, 2)) == 0.0


def test_the_distance_to_the_teacher_is_the_divergence_at_a_temperature() -> None:
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    # At T = 2: 4 * KL((1/2, 1/2) || softmax(1, 0)) = 4 * (ln(1 + e) - 1/2 - ln 2)
    expected = 4 * (torch.log1p(torch.tensor(1.0).exp()) - 0.5 - torch.tensor(2.0).log())
    found = schedules.distillation_loss(student, teacher, 2.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(schedules.distillation_loss(teacher, teacher)) == 0


@dataclass(frozen=True)
class LastFirst(schedules.Rule):
    name: ClassVar[str] = "last first"

    def score(self, stage: Stage) -> Scores:
        return {site: -place for place, site in enumerate(stage.sites)}


def test_a_rule_of_ones_own_is_one_small_class() -> None:
    task = Task()
    result = schedules.run(
        mixed(), task.loader, LastFirst(), train=task.train, evaluate=task.evaluate, rounds=3
    )
    assert result.removed == ("gelu", "clip", "relu#2")
    assert result.method == "last first"


def test_a_round_tells_what_it_did_as_soon_as_it_is_done() -> None:
    told: list[int] = []
    result = scheduled(drop=1.0, rounds=2, on_round=lambda each: told.append(each.number))
    assert told == [0, 1, 2]
    content = json.loads(result.to_json())
    assert [each["removed"] for each in content["rounds"]] == [
        list(each.removed) for each in result.rounds
    ]
    assert "stopped: the last of 2 rounds is done" in result.table()


def test_a_site_that_cannot_be_removed_is_left_out_and_reported() -> None:
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 3)
            self.act, self.act2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(x)
            z = self.act(y)
            z.add_(1)  # would overwrite y, which is read again
            return self.act2(y) + z

    x = torch.randn(8, 3)
    result = schedules.easier(
        Overwritten().eval(), [x], train=never, evaluate=lambda module: 1.0, progress=False
    )
    assert set(result.removed) == {"act2"}
    assert "overwrites its output in place" in result.stuck["act"]
    refusals = fxreduce.report(result.merged()).refusals
    assert any(each.where == "act" for each in refusals)


@pytest.mark.parametrize(
    "options",
    [
        {"compensate": "affine"},
        {"rewind": "first"},
        {"refit_scope": "all"},
        {"drop": -0.1},
        {"rounds": -1},
        {"rounds": 1.5},
        {"variant": "journal"},
    ],
)
def test_options_that_do_not_exist_are_errors_before_any_training(options: Any) -> None:
    task = Task()
    with pytest.raises(ScheduleError, match="seen: "):
        scheduled(task=task, **options)
    assert task.trainings == 0


def test_a_training_that_diverges_is_an_error() -> None:
    def diverge(module: nn.Module) -> None:
        next(module.parameters()).data.fill_(float("nan"))

    with pytest.raises(ScheduleError, match=r"stem\.weight has NaN"):
        scheduled(train=diverge)


def test_an_evaluation_that_returns_no_number_is_an_error() -> None:
    with pytest.raises(ScheduleError, match=r"evaluate\(module\) must return a number"):
        scheduled(train=never, evaluate=lambda module: None)


def test_a_rule_that_scores_what_is_no_site_is_an_error() -> None:
    class Wrong(schedules.Rule):
        def score(self, stage: Stage) -> Scores:
            return {"nothing": 1.0}

    with pytest.raises(ScheduleError, match="'nothing'"):
        schedules.run(mixed(), Task().loader, Wrong(), train=never, evaluate=lambda m: 1.0)


def test_a_model_in_train_mode_and_a_glob_without_sites_are_errors() -> None:
    task = Task()
    given = {"train": task.train, "evaluate": task.evaluate}
    with pytest.raises(CaptureError):
        schedules.easier(mixed().train(), task.loader, **given)
    with pytest.raises(PlanError, match="matches none"):
        schedules.easier(mixed(), task.loader, include="layer9.*", **given)
