"""`fxreduce schedule` under torchrun: two processes decide as one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import by_two_ranks

from fxreduce.cli.main import main

MODEL_FILE = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )
"""


def test_two_ranks_have_the_decisions_and_accuracies_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.py"
    path.write_text(MODEL_FILE)
    command = [
        *("schedule", "easier", f"{path}:small", "--size", "8", "--epochs", "1", "--rate", "0.05"),
        *("--samples", "100", "--drop", "inf", "--rounds", "1", "--json", "--quiet"),
    ]
    assert main(command) == 0
    one = json.loads(capsys.readouterr().out)
    first, second = by_two_ranks(["-m", "fxreduce", *command])
    assert second == ""
    two = json.loads(first)
    assert decided(two) == decided(one)


def decided(content: dict[str, Any]) -> list[object]:
    """All that does not depend on the clock."""
    (outcome,) = content["outcomes"]
    free = ("seconds", "faster")
    points = [{k: v for k, v in point.items() if k not in free} for point in outcome["points"]]
    return [points, outcome["report"]["removed"], outcome["best"], outcome["stopped"]]
