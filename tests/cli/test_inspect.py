"""`fxreduce inspect` says what each kind of file is, as text and as JSON, and refuses the rest."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import fxreduce
from fxreduce.cli.main import main
from tests.models import Small, images, seeded

pytest.importorskip("onnxruntime", reason="ONNX is an extra")
SUFFIXES = (".json", ".safetensors", ".pt2", ".onnx")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one reduction in all formats."""
    folder = tmp_path_factory.mktemp("reduced")
    model, batches = seeded(Small), images(6, 6, 6)
    plan = fxreduce.analyze(model, batches).plan(budget=1, compensate="channel")
    plan.save(folder / "small.json")
    for suffix in SUFFIXES[1:]:
        fxreduce.save(plan.apply(model), folder / f"small{suffix}")
    return folder


def printed(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["inspect", str(path), *options]) == 0
    return capsys.readouterr().out


EXPECTED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    ".json": (
        {"is": "the plan", "removes": "1 of 2 rectifiers", "inputs": "float32[4, 3, 8, 8]"},
        ("removed site", "act2"),
    ),
    ".safetensors": (
        {"is": "the reduced model", "model": "Small", "needs model": False},
        ("1 of 2 rectifiers removed", "removed 1"),
    ),
    ".pt2": (
        {"is": "a torch.export program for any batch size", "operators": 5},
        ("torch.ops.aten.conv2d.default", "torch.ops.aten.relu.default"),
    ),
    ".onnx": (
        {"is": "an ONNX model for any batch size", "inputs": {"image": ["batch", 3, 8, 8]}},
        ("Conv", "Relu"),
    ),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_described(files: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts, words = EXPECTED[suffix]
    found = json.loads(printed(files / f"small{suffix}", capsys, "--json"))
    assert {key: found[key] for key in facts} == facts
    assert found["bytes"] == (files / f"small{suffix}").stat().st_size
    text = printed(files / f"small{suffix}", capsys)
    for word in (*words, facts["is"]):
        assert word in text


def test_the_details_of_json_are_those_of_the_plan_and_the_report(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = json.loads(printed(files / "small.json", capsys, "--json"))
    assert [step["site"] for step in plan["details"]] == ["act2"]
    reduced = json.loads(printed(files / "small.safetensors", capsys, "--json"))
    assert reduced["details"]["removed"] == ["act2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small.json", "it is not JSON"),
        ("small.safetensors", "no reduced model can be read"),
        ("small.pt2", "is no program of torch.export"),
        ("small.onnx", "is no ONNX model"),
        ("small.pth", "a file of fxreduce ends in .json, .safetensors, .pt2, .onnx"),
    ],
)
def test_a_damaged_or_unknown_file_is_refused_in_one_line(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"\x08\xffnonsense")
    assert main(["inspect", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", '{"graph_module": []}', '{"graph_module": 1}'])
def test_a_program_of_another_form_is_refused_in_one_line(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "small.pt2", "w") as archive:
        archive.writestr("small/models/model.json", content)
    assert main(["inspect", str(tmp_path / "small.pt2")]) == 2
    assert "is no program of torch.export" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "absent.json")]) == 2
    assert "there is no file" in capsys.readouterr().err
