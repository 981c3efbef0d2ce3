"""A schedule that is interrupted goes on to the same end, whenever that was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxreduce import schedules
from fxreduce.errors import ScheduleError
from fxreduce.schedules import checkpoint as checkpoints
from tests.schedules.scheduling import Mixed, Task, mixed

OPTIONS: dict[str, dict[str, Any]] = {
    "easier": {"variant": "code", "drop": 1.0, "rounds": 3},
    "egp": {"part": 0.9, "rounds": 3, "rewind": "dense"},
    "tlc": {"drop": 1.0, "rounds": 3, "distillation": schedules.Distillation()},
    "layer_folding": {"variant": "code", "rounds": 2, "rewind": "initial"},
}


class Interrupted(Exception):  # noqa: N818
    """Stands for a kill."""


def scheduled(
    folder: Path | None, method: str = "easier", model: nn.Module | None = None, **options: Any
) -> schedules.ScheduleResult:
    task = Task(dtype=torch.float32)
    given = {"train": task.train, "evaluate": task.evaluate, "progress": False}
    found: schedules.ScheduleResult = getattr(schedules, method)(
        mixed(torch.float32) if model is None else model,
        task.loader,
        checkpoint=folder,
        **(given | OPTIONS[method] | options),
    )
    return found


def story(result: schedules.ScheduleResult) -> tuple[str, dict[str, Any]]:
    """All decisions and figures, and all weights."""
    return result.to_json(), {n: t.tolist() for n, t in result.model.state_dict().items()}


def interrupting(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The function, which is interrupted in its call of that number."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Interrupted
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("method", OPTIONS)
def test_an_interrupted_schedule_goes_on_to_the_same_weights(method: str, tmp_path: Path) -> None:
    expected = story(scheduled(None, method))
    for at in (1, 2, 3):
        folder = tmp_path / str(at)
        task = Task(dtype=torch.float32)
        with pytest.raises(Interrupted):
            scheduled(folder, method, train=interrupting(task.train, at))
        torch.randn(at)  # whatever the generators are at when it goes on
        assert story(scheduled(folder, method)) == expected


def test_generators_that_no_seed_sets_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = story(scheduled(tmp_path / "whole", model=mixed(torch.float32), seed=None))
    torch.manual_seed(3)
    task = Task(dtype=torch.float32)
    train = interrupting(task.train, 3)
    with pytest.raises(Interrupted):
        scheduled(tmp_path / "parts", model=mixed(torch.float32), seed=None, train=train)
    torch.manual_seed(4)
    assert story(scheduled(tmp_path / "parts", seed=None)) == expected


def test_a_kill_at_any_step_of_writing_leaves_a_checkpoint_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = story(scheduled(None, rounds=1))
    for at in range(1, 40):
        folder = tmp_path / str(at)
        with monkeypatch.context() as patched:
            # Files take the place of others by os.replace, and old ones go by unlink.
            patched.setattr(os, "replace", interrupting(os.replace, at))
            try:
                found = scheduled(folder, rounds=1)
            except Interrupted:
                found = None
        if found is not None:
            assert at > 8  # two or three files for each of four states
            break
        assert story(scheduled(folder, rounds=1)) == expected
    else:
        pytest.fail("it never ended")


def test_a_finished_schedule_only_returns_its_result(tmp_path: Path) -> None:
    expected = story(scheduled(tmp_path))

    def train(module: nn.Module) -> None:
        raise AssertionError("nothing is left to train")

    assert story(scheduled(tmp_path, train=train)) == expected


def test_only_files_that_are_needed_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    scheduled(tmp_path)
    content = json.loads((tmp_path / "schedule.json").read_text())
    named = {each["file"] for each in content["snapshots"].values()} | {content["extra"]}
    assert {path.name for path in tmp_path.iterdir()} == {
        *named,
        "schedule.json",
        "mine.safetensors",
    }


def test_a_full_disk_is_an_error_and_the_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = story(scheduled(None))
    written = checkpoints._write_file
    count = 0

    def full(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_write_file", full)
        with pytest.raises(ScheduleError, match="No space left on device"):
            scheduled(tmp_path)
    before = (tmp_path / "schedule.json").read_text()
    assert len(json.loads(before)["rounds"]) >= 1
    assert story(scheduled(tmp_path)) == expected


def test_a_folder_that_cannot_be_written_is_an_error_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    task = Task(dtype=torch.float32)
    with pytest.raises(ScheduleError, match=r"cannot be (written|read)"):
        scheduled(tmp_path / "file" / "inside", train=task.train)
    assert task.trainings == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 4}, "settings.rounds was 3 there and is 4 now"),
        ({"variant": "paper"}, "rule.variant was 'code' there and is 'paper' now"),
        ({"include": "relu*"}, "is of another schedule: sites"),
    ],
)
def test_a_checkpoint_of_another_schedule_is_an_error_and_stays(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    scheduled(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ScheduleError, match=message):
        scheduled(tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_another_method_or_model_is_an_error(tmp_path: Path) -> None:
    scheduled(tmp_path)
    with pytest.raises(ScheduleError, match="method was 'EASIER' there and is 'EGP' now"):
        scheduled(tmp_path, "egp")
    with pytest.raises(ScheduleError, match=r"another model: architecture\[\d+\] was 'parameter"):
        scheduled(tmp_path, model=Mixed(width=6).eval())


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    scheduled(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ScheduleError, match=r"damaged.*Give another folder"):
            scheduled(tmp_path)
        path.write_bytes(content)
    (tmp_path / "schedule.json").write_text('{"schema": 99}')
    with pytest.raises(ScheduleError, match="has schema 99"):
        scheduled(tmp_path)
