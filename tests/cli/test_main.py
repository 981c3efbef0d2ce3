"""The command line as a person types it: exit codes, streams, JSON, files and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxreduce
from fxreduce.cli import commands, demo
from fxreduce.cli.commands import parse_budget
from fxreduce.cli.main import main
from fxreduce.errors import PlanError

MODEL_FILE = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
"""
QUICK = ("--size", "8", "--samples", "40", "--batch-size", "8", "--quiet")


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL_FILE)
    return f"{path}:small"


def test_analyze_prints_a_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", model, *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("site  kind  channels  entropy (bits)")
    assert "2 rectifiers, measured on 40 images of digits, 8x8 pixels" in out
    assert err == ""


def test_analyze_prints_one_json_document(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", model, "--json", "--entropy", "easier-code", *QUICK]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["calibration_images"] == 40
    assert content["analysis"]["entropy"] == "easier-code"
    assert [site["name"] for site in content["analysis"]["sites"]] == ["2", "4"]


def test_random_weights_are_noted_on_standard_error(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", model, *QUICK[:-1]]) == 0
    assert "has random weights" in capsys.readouterr().err


def test_given_weights_are_used(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxreduce.cli.models import load_model

    weights = tmp_path / "weights.pt"
    torch.save(load_model(model, seed=9).module.state_dict(), weights)

    def entropies(*options: str) -> object:
        assert main(["analyze", model, "--json", *options, *QUICK]) == 0
        return json.loads(capsys.readouterr().out)["analysis"]["sites"]

    with_weights = entropies("--weights", str(weights))
    assert with_weights != entropies()
    assert with_weights == entropies("--weights", str(weights))


def test_reduce_writes_a_program_for_any_batch_size(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reduced.pt2"
    assert main(["reduce", model, "--budget", "2", "--out", str(path), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 rectifiers removed" in out
    assert "same prediction as the original on" in out
    assert "wrote a torch.export program for any batch size to" in out
    program = torch.export.load(path).module()
    for images in (1, 5):
        assert program(torch.randn(images, 1, 8, 8)).shape == (images, 10)
    assert sorted(file.name for file in tmp_path.glob("*.pt2")) == ["reduced.pt2"]


def test_reduce_writes_a_model_that_is_loaded_again(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reduced.safetensors"
    assert main(["reduce", model, "--budget", "2", "--out", str(path), *QUICK]) == 0
    assert f"read it back and compared: fxreduce.load('{path}', model)" in capsys.readouterr().out
    loaded = fxreduce.load(path)
    assert len(fxreduce.report(loaded).removed) == 2
    assert loaded(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_reduce_writes_an_onnx_model_for_any_batch_size(model: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is an extra")
    path = tmp_path / "reduced.onnx"
    assert main(["reduce", model, "--budget", "2", "--out", str(path), *QUICK]) == 0
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    for images in (1, 5):
        (y,) = session.run(None, {given.name: torch.randn(images, 1, 8, 8).numpy()})
        assert y.shape == (images, 10)


def test_reduce_writes_a_plan_that_can_be_applied(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxreduce.cli.models import load_model

    path = tmp_path / "plan.json"
    options = ["--budget", "0.5", "--compensate", "identity", "--exclude", "2"]
    assert main(["reduce", model, *options, "--out", str(path), "--json", *QUICK]) == 0
    content = json.loads(capsys.readouterr().out)
    assert 0 <= content["agreement"] <= 1
    assert content["seconds_after"] > 0
    plan = fxreduce.Plan.load(path)
    assert list(plan.sites) == content["report"]["removed"]
    assert "2" not in plan.sites
    plan.apply(load_model(model).module)


@pytest.mark.parametrize("name", ["entropy", "residual", "sensitivity", "batchnorm"])
def test_reduce_orders_by_the_importance_that_is_named(
    name: str, model: str, tmp_path: Path
) -> None:
    from fxreduce.cli.models import load_model

    path = tmp_path / "plan.json"
    options = ["--budget", "1", "--importance", name, "--include", "2", "--out", str(path)]
    assert main(["reduce", model, *options, *QUICK]) == 0
    (step,) = fxreduce.Plan.load(path).steps
    if name == "entropy":
        assert step.importance == step.entropy
    elif name == "batchnorm":  # a new batch-norm has β = 0 and says nothing
        assert isinstance(load_model(model).module[1], torch.nn.BatchNorm2d)
        assert step.importance == 0.5
    else:
        assert 0 < step.importance != step.entropy
        other = {"residual": "sensitivity", "sensitivity": "residual"}[name]
        assert main(["reduce", model, *options, "--importance", other, *QUICK]) == 0
        assert fxreduce.Plan.load(path).steps[0].importance != step.importance


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["analyze", "nowhere.py:factory"], "there is no file nowhere.py"),
        (["analyze", "MODEL", "--device", "nonsense"], "--device nonsense cannot be used here"),
        (
            ["analyze", "MODEL", "--data", "cifar"],
            "data are named digits, ",
        ),
        (["reduce", "MODEL", "--out", "model.h5"], "the suffix says what to write"),
        (["reduce", "MODEL", "--out", "plan.json", "--budget", "many"], "--budget is a number"),
        (["reduce", "MODEL", "--out", "plan.json", "--budget", "3"], "3 rectifiers, but 2 can"),
        (["reduce", "MODEL", "--out", "plan.json", "--include", "x*"], "matches none of 2, 4"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [model if argument == "MODEL" else argument for argument in arguments]
    assert main([*filled, *QUICK]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fxreduce: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["analyze", "m.py:f", "--samples", "0"], "must be at least 1; got 0"),
        (["demo", "--fraction", "1.5"], "must be above 0 and at most 1; got 1.5"),
        (["analyze"], "required: MODEL"),
        (
            ["reduce", "m.py:f", "--out", "plan.json", "--importance", "magic"],
            "{entropy,residual,sensitivity,batchnorm}",
        ),
        ([], "required: COMMAND"),
    ],
)
def test_a_malformed_command_is_exit_code_2_with_the_usage(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: fxreduce")
    assert said in err


def test_an_interrupt_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(settings: demo.Settings) -> list[demo.Row]:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "fxreduce: interrupted\n"


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("8", fxreduce.Remove(8)),
        ("0", fxreduce.Remove(0)),
        ("0.5", fxreduce.Fraction(0.5)),
        ("1e-1", fxreduce.Fraction(0.1)),
        ("entropy<0.3", fxreduce.EntropyBelow(0.3)),
        ("entropy < 1", fxreduce.EntropyBelow(1.0)),
        ("1.5x", fxreduce.Speedup(1.5)),
        ("auto", fxreduce.Fidelity(0.99)),
    ],
)
def test_a_budget_is_read_from_text(text: str, budget: fxreduce.Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["", "many", "entropy<", "entropy<x", "loss<0.1", "-3", "1.5", "x", "0x"]
)
def test_a_malformed_budget_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        parse_budget(text)


def test_the_report_is_written_as_a_page(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plan = tmp_path / "report.html", tmp_path / "plan.json"
    arguments = ["reduce", model, "--budget", "1", "--out", str(plan), "--report", str(page)]
    assert main([*arguments, "--json", *QUICK]) == 0
    content = json.loads(capsys.readouterr().out)
    report, html = content["report"], page.read_text()
    assert (report["agreement"], report["latency"]["before"]) == (
        content["agreement"], content["seconds_before"],
    )  # fmt: skip
    assert f"{content['seconds_before'] / content['seconds_after']:.2f}×" in html
    assert f"{report['macs_after']:,}" in html


@pytest.mark.parametrize(
    ("name", "said"),
    [("report.txt", "ends .html"), ("no/report.html", "there is no folder"), (".html", "ends")],
)
def test_a_page_that_cannot_be_written_is_refused_first(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "plan.json"))
    assert main(["reduce", "no model", *out, "--report", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
