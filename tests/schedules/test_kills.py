"""SIGKILL at random moments: what was run again ends as what was never killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.zoo)])
def test_a_schedule_killed_at_random_moments_ends_with_the_same_weights(
    kills: int, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.schedules.killed_runs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def told(folder: str, seconds: float | None) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{tmp_path / folder} {'-' if seconds is None else seconds}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        took, expected = told("whole", None).split(" ", 1)
        assert not expected.startswith("error")
        moments, killed = random.Random(kills), 0
        for number in range(kills):
            folder = str(number)
            killed += told(folder, moments.uniform(0, 0.8 * float(took))) == "killed"
            _, found = told(folder, None).split(" ", 1)
            assert found == expected
        assert process.stdin is not None
        process.stdin.close()
        assert killed >= kills // 4  # or the moments were none within the schedule
