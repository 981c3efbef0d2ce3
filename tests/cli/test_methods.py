"""Every method to its end on narrow versions of the published networks, and on a small RoBERTa.

One epoch a training: enough to see that all of it works, not how accurate it is.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import layouts
import pytest

from fxreduce.cli.main import main
from fxreduce.recipes.recipe import METHODS

SITES = {"resnet18": 17, "swin_t": 12, "mobilenet_v2": 35, "vgg16_bn": 15}
ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 20,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}


def outcomes(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """What `fxreduce schedule` found of each method."""
    assert main(["schedule", *arguments, "--json", "--quiet"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["outcomes"]
    return found


def check(outcome: dict[str, Any], sites: int) -> None:
    """It went on to its own end; the best network is merged, and computes the same."""
    assert outcome["stopped"]
    points, report = outcome["points"], outcome["report"]
    assert [point["number"] for point in points] == list(range(len(points)))
    assert points[-1]["removed"] <= sites
    assert all(0 <= point["test"] <= 1 for point in points)
    found = {point["number"]: point["removed"] for point in points}
    assert len(report["removed"]) == found[outcome["best"]]
    assert report["operators_after"] < report["operators_before"]
    assert report["max_error"] < 1e-5


@pytest.mark.zoo
@pytest.mark.parametrize("network", SITES)
def test_every_method_runs_to_its_end_on_the_published_networks(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcomes(capsys, "compare", "--recipe", f"digits-{network}", "--epochs", "1")
    assert [each["method"] for each in found] == list(METHODS)
    for outcome in found:
        check(outcome, SITES[network])


def texts(path: Path, count: int) -> None:
    """Sentences that are good where they are fine and not wet."""
    words = ("a", "film", "it", "rains", "is", "who")
    lines = ["sentence\tlabel"]
    for number in range(count):
        draw = random.Random(number)
        sentence = [*draw.choices(words, k=6), *draw.choices(("fine", "wet", "a"), k=2)]
        draw.shuffle(sentence)
        good = "fine" in sentence and "wet" not in sentence
        lines.append(f"{' '.join(sentence)}\t{int(good)}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.zoo
@pytest.mark.parametrize("method", ["easier", "tlc"])
def test_a_small_roberta_loses_all_its_rectifiers(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = layouts.tokenizer(tmp_path / "words")
    texts(tmp_path / "train.tsv", 600)
    texts(tmp_path / "dev.tsv", 120)
    (tmp_path / "config.json").write_text(json.dumps(ROBERTA))
    (outcome,) = outcomes(
        capsys, method, f"transformers:{tmp_path}", "--data", f"sst2:{tmp_path}",
        "--tokenizer", str(words), "--recipe", "sst2-roberta", "--epochs", "4",
        "--rate", "0.003", "--drop", "inf",
    )  # fmt: skip
    check(outcome, 4)
    assert outcome["points"][-1]["removed"] == 4
    assert min(point["test"] for point in outcome["points"]) > 0.9
