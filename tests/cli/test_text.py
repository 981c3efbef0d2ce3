"""Models for text on the command line, on generated sentences."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import pytest

from fxreduce.cli.main import main
from fxreduce.cli.models import load_model

MODEL_FILE = """
from torch import nn

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.act = nn.GELU()
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids) * attention_mask.unsqueeze(-1)
        x = self.act(self.second(self.act(self.first(x))))
        return self.head(x.mean(1))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A model for text with its tokenizer and data; what it writes is read as JSON."""
    path = tmp_path / "text.py"
    path.write_text(MODEL_FILE)
    words = layouts.tokenizer(tmp_path / "words")
    layouts.glue(tmp_path / "sst2", "sst2")
    options = ["--data", f"sst2:{tmp_path / 'sst2'}", "--tokenizer", str(words)]
    return [f"{path}:Classifier", *options, "--batch-size", "6", "--json", "--quiet"]


def test_the_rectifiers_of_a_model_for_text_are_measured(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", *command]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [site["name"] for site in content["analysis"]["sites"]] == ["act", "act#1"]


@pytest.mark.parametrize("method", ["easier", "tlc"])
def test_a_method_runs_on_text(
    method: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", "sst2-roberta", "--epochs", "1", "--drop", "inf", "--rounds", "1"]
    assert main(["schedule", method, *command, *options]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert len(outcome["points"]) == 2
    assert outcome["points"][1]["removed"] == len(outcome["report"]["removed"]) >= 1


@pytest.mark.parametrize("method", ["easier", "tlc"])
def test_a_method_runs_on_a_roberta_of_a_folder_and_writes_what_it_merged(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = layouts.tokenizer(tmp_path / "words")
    data = tmp_path / "sst2"
    layouts.glue(data, "sst2")
    config = {"model_type": "roberta", "hidden_size": 8, "intermediate_size": 16, "vocab_size": 20}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 130}
    (tmp_path / "config.json").write_text(json.dumps({**config, **layers, "pad_token_id": 0}))
    command = [
        "schedule",
        method,
        f"transformers:{tmp_path}",
        "--data",
        f"sst2:{tmp_path / 'sst2'}",
    ]
    options = ["--tokenizer", str(words), "--recipe", "sst2-roberta", "--epochs", "1"]
    path = tmp_path / "merged.safetensors"
    limits = ["--batch-size", "6", "--rounds", "1", "--drop", "inf", "--out", str(path)]
    assert main([*command, *options, *limits, "--json", "--quiet"]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    report = outcome["report"]
    assert outcome["points"][-1]["removed"] == len(report["removed"]) >= 1
    assert report["operators_after"] < report["operators_before"]
    assert report["max_error"] < 1e-5
    assert main(["inspect", str(path)]) == 0
    assert report["removed"][0] in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".pt2"])
def test_a_model_for_text_is_reduced_and_written(
    suffix: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"reduced{suffix}"
    assert main(["reduce", *command, "--out", str(path), "--budget", "1"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["report"]["removed"] in (["act"], ["act#1"])
    assert 0 <= content["agreement"] <= 1
    assert content["image_size"] is None
    assert main(["inspect", str(path)]) == 0


def test_what_is_said_of_a_model_for_text_speaks_of_texts(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [word for word in command if word != "--json"]
    assert main(["reduce", *shown, "--out", str(tmp_path / "plan.json"), "--budget", "1"]) == 0
    output = capsys.readouterr().out
    assert "held-out texts of sst2" in output
    assert "ms for one text on cpu" in output
    assert "image" not in output


def test_a_model_of_transformers_is_built_from_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    config = {"model_type": "bert", "hidden_size": 8, "intermediate_size": 16, "vocab_size": 20}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, **layers}))
    name = f"transformers:{tmp_path}"
    module = load_model(name, classes=3).module
    assert module.classifier.weight.shape == (3, 8)
    assert main(["schedule", "tlc", name, "--quiet"]) == 2
    assert "name the folder of its tokenizer" in capsys.readouterr().err
    assert main(["analyze", "transformers:bertt"]) == 2
    assert "has no model type 'bertt', nor is it a folder" in capsys.readouterr().err
