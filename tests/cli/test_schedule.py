"""`fxreduce schedule` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxreduce
from fxreduce.cli.experiment import shortened
from fxreduce.cli.main import main
from fxreduce.recipes.recipe import METHODS
from fxreduce.training.settings import TrainingSettings

MODEL_FILE = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )
"""
QUICK = ("--size", "8", "--epochs", "2", "--rate", "0.05", "--samples", "100", "--quiet")


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL_FILE)
    return f"{path}:small"


def test_a_method_prints_its_rounds_and_a_summary(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", "easier", model, "--drop", "inf", *QUICK]) == 0
    out, err = capsys.readouterr()
    first, body, notes, summary = out.strip().split("\n\n")
    assert first.endswith(":small on digits")
    header, _, *rows = body.splitlines()
    assert header.split() == [
        "method", "round", "removed", "validation", "test", "multiply-adds", "ms", "faster",
        "epochs", "counts",
    ]  # fmt: skip
    assert [row.split()[:3] for row in rows] == [["easier", str(n), str(n)] for n in range(3)]
    assert [row.split()[-2] for row in rows] == ["2", "4", "6"]
    assert "accuracy on samples that no decision has seen" in notes
    assert summary.startswith("easier: 2 of 2 rectifiers removed")
    assert "6 epochs; stopped: no site is left" in summary
    assert err == ""


def test_each_round_is_told_while_it_runs(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "easier", model, "--rounds", "1", "--drop", "inf", *QUICK[:-1]]) == 0
    err = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in err] == ["easier, round 0", "easier, round 1"]
    assert err[1].endswith("4 epochs so far")


def test_training_again_may_be_shorter_and_at_another_rate(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxreduce.training.trainer import Trainer

    train, rates = Trainer.__call__, []

    def told(self: Trainer, module: torch.nn.Module) -> None:
        rates.append(self.settings.rate)
        train(self, module)

    monkeypatch.setattr(Trainer, "__call__", told)
    again = ["--retrain-epochs", "1", "--retrain-rate", "0.01"]
    command = ["schedule", "easier", model, "--drop", "inf", "--refit", "--json"]
    assert main([*command, *again, *QUICK]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert [point["epochs"] for point in outcome["points"]] == [2, 3, 4]
    assert rates == [0.05, 0.01, 0.01]


def test_methods_are_compared_from_the_same_dense_weights(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "rounds.svg"
    options = ["--rounds", "1", "--drop", "inf", "--plot", str(plot), "--json"]
    assert main(["schedule", "compare", model, *options, *QUICK]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["schema"] == 1
    assert [each["method"] for each in content["outcomes"]] == list(METHODS)
    dense = [each["points"][0] for each in content["outcomes"]]
    assert len({(point["test"], point["validation"], point["macs"]) for point in dense}) == 1
    assert {point["epochs"] for point in dense} == {2}
    for each in content["outcomes"]:
        assert each["report"]["max_error"] < 1e-5
        assert [point["epochs"] for point in each["points"][1:]] in ([], [4], [6])
    easier = content["outcomes"][0]
    assert easier["report"]["removed"] == easier["report"]["removed"][:1]
    assert easier["points"][1]["removed"] == 1
    assert plot.read_text().startswith("<?xml")


def test_an_interrupted_run_goes_on_to_the_same_figures(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fxreduce.cli.experiment import Experiment

    command = ["schedule", "easier", model, "--drop", "inf", "--json", *QUICK]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main([*command, "--checkpoint", str(whole)]) == 0
    expected = json.loads(capsys.readouterr().out)["outcomes"][0]
    train, calls = Experiment.train_again, []

    def interrupted(self: Experiment, module: torch.nn.Module) -> None:
        calls.append(module)
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(self, module)

    monkeypatch.setattr(Experiment, "train_again", interrupted)
    assert main([*command, "--checkpoint", str(parted)]) == 130
    capsys.readouterr()
    assert main([*command, "--checkpoint", str(parted)]) == 0
    assert len(calls) == 3  # the first round was not trained again
    found = json.loads(capsys.readouterr().out)["outcomes"][0]
    for figure in ("removed", "validation", "test", "epochs", "macs"):
        assert [p[figure] for p in found["points"]] == [p[figure] for p in expected["points"]]
    assert found["report"]["removed"] == expected["report"]["removed"]


def test_the_folder_of_another_experiment_is_refused_and_left_as_it_is(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = ["schedule", "egp", model, "--rounds", "1", "--checkpoint", str(folder), *QUICK]
    assert main(command) == 0
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(kept) > 3
    capsys.readouterr()
    assert main([*command, "--rate", "0.01"]) == 2
    err = capsys.readouterr().err
    assert "is of another experiment: its training is" in err
    assert err.count("\n") == 1
    assert kept == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shared_dense_weights_are_read_again(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["schedule", "compare", model, "--methods", "egp", "--rounds", "1", *QUICK]
    assert main([*command, "--checkpoint", str(folder)]) == 0
    assert (folder / "dense.safetensors").is_file()
    before = (folder / "egp.json").read_text()
    assert main([*command, "--checkpoint", str(folder)]) == 0
    assert (folder / "egp.json").read_text() == before


def test_weights_that_are_trained_are_not_trained_again(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxreduce.cli.models import load_model

    path = tmp_path / "weights.pth"
    torch.save(load_model(model, seed=3).module.state_dict(), path)
    options = ["--weights", str(path), "--trained", "--rounds", "1", "--drop", "inf", "--json"]
    assert main(["schedule", "easier", model, *options, *QUICK]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert [point["epochs"] for point in outcome["points"]] == [0, 2]


def test_what_the_publications_do_not_have_can_be_added(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    added = ["--refit", "--distil", "--rewind", "dense", "--compensate", "channel", "--moves", "2"]
    training = ["--precision", "bfloat16", "--compile", "aot_eager", "--workers", "1"]
    options = [*added, *training, "--variant", "code", "--drop", "inf", "--json"]
    assert main(["schedule", "easier", model, *options, *QUICK]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert [point["removed"] for point in outcome["points"]] == [0, 2]
    assert outcome["report"]["max_error"] < 1e-5


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2", ".onnx"])
def test_the_merged_network_is_written_and_read_back(
    suffix: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime" if suffix == ".onnx" else "safetensors")
    path = tmp_path / f"merged{suffix}"
    options = ["--rounds", "1", "--drop", "inf", "--out", str(path), *QUICK]
    assert main(["schedule", "easier", model, *options]) == 0
    assert f"to {path} (" in capsys.readouterr().out.splitlines()[-1]
    if suffix == ".safetensors":
        assert len(fxreduce.report(fxreduce.load(path)).removed) == 1
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(path)


@pytest.mark.parametrize(
    ("budget", "removed", "stopped"),
    [("1", 1, "as the budget says"), ("entropy<0", 0, "not below 0"), ("9x", 2, "no site is left")],
)
def test_a_budget_ends_a_method(
    budget: str, removed: int, stopped: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["schedule", "easier", model, "--drop", "inf", "--budget", budget, "--json", *QUICK]
    assert main(command) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert outcome["points"][-1]["removed"] == removed
    assert stopped in outcome["stopped"]


def test_the_entropy_is_divided_by_what_a_removal_saves(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["schedule", "easier", model, "--drop", "inf", "--rounds", "1", "--json", *QUICK]
    assert main(command) == 0
    assert "lowest for what it saves" not in capsys.readouterr().out
    assert main([*command, "--per-gain"]) == 0
    assert "lowest for what it saves" in capsys.readouterr().out


def test_rounds_beyond_the_limit_are_said_not_to_count(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxreduce.cli.models import load_model

    path = tmp_path / "weights.pth"
    torch.save(load_model(model).module.state_dict(), path)
    start = ["--weights", str(path), "--epochs", "8", "--rate", "0.1", "--json"]
    assert main(["schedule", "easier", model, *QUICK, *start, "--drop", "0"]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    counted = [point["counts"] for point in outcome["points"]]
    assert counted == [point["validation"] >= outcome["points"][0]["validation"]
                       for point in outcome["points"]]  # fmt: skip
    assert outcome["best"] == max(n for n, counts in enumerate(counted) if counts)


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "--recipe", "list"]) == 0
    out = capsys.readouterr().out
    assert "cifar10-resnet18" in out
    assert main(["schedule", "--recipe", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert listed[0]["name"] == "aircraft-mobilenet_v2"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["easier", "--recipe", "cifar10-resnet18"], "trains on cifar10: name the folder"),
        ([], "name a METHOD: easier, egp"),
        (["easier", "--root", "here"], "digits needs no folder"),
        (["easier", "--recipe", "cifar10-resnet18", "--root", "none"], "The layout is ROOT/cifar"),
        (["easier", "--recipe", "cifar"], "there is no recipe 'cifar'"),
        (["egp", "--moves", "2"], "egp has no setting moves"),
        (["tlc", "--per-gain"], "tlc has no setting per_gain"),
        (["easier", "--out", "plan.json"], "the suffix says what to write. .safetensors: "),
        (["compare", "--out", "x.pt2"], "--out takes the network of one method"),
        (["easier", "--trained"], "name them with --weights"),
        (["easier", "--plot", "x.gif"], "the suffix says what to draw"),
        (["easier", "--plot", "no/x.png"], "there is no folder no"),
        (["easier", "torchvision:resnet18", "--width", "0.5"], "small models alone have a width"),
        (["easier", "--rate", "-1"], "rate is above 0"),
        (["easier", "--budget", "much"], "--budget is a number of rectifiers"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["schedule", *arguments, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fxreduce: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_fewer_epochs_keep_the_places_of_milestones_and_warm_up() -> None:
    found = shortened(TrainingSettings(warmup=16), epochs=10, rate=0.5)
    assert (found.epochs, found.milestones, found.warmup, found.rate) == (10, (5, 8), 1.0, 0.5)
    assert shortened(TrainingSettings(), rate=0.5).milestones == (80, 120)
