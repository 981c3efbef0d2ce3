"""`fxreduce reduce` under torchrun: one process prints and writes what one alone would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fxreduce

MODEL_FILE = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )
"""


@pytest.mark.zoo
def test_torchrun_reduces_as_one_process_does(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits are its own")
    pytest.importorskip("safetensors", reason="fitted weights are saved in its format")
    path = tmp_path / "network.py"
    path.write_text(MODEL_FILE)
    run = [sys.executable, "-m"]
    torchrun = [*run, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    printed, plans = [], []
    for name, start in (("one", run), ("two", torchrun)):
        out = tmp_path / f"{name}.json"
        command = ["reduce", f"{path}:small", "--size", "8", "--samples", "200", "--seed", "3"]
        done = subprocess.run(
            [*start, "fxreduce", *command, "--json", "--quiet", "--out", str(out)],
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(json.loads(done.stdout))  # one document: one process has printed
        plans.append(fxreduce.Plan.load(out))
    one, two = plans
    assert two.sites == one.sites != ()
    assert two.steps == one.steps
    assert two.weights.keys() == one.weights.keys()
    for name, weights in one.weights.items():
        assert (two.weights[name] - weights).abs().max() < 1e-5  # they are float32
    assert printed[0]["report"]["removed"] == printed[1]["report"]["removed"]
