"""Several processes decide what one would, and each what the others do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxreduce.calibration.ranks import first_rank, mean_over_ranks, over_ranks
from tests.schedules import ranks_runs


def test_one_process_keeps_what_it_has() -> None:
    assert over_ranks({}) == {}
    assert mean_over_ranks(0.1) == 0.1
    assert first_rank({"a": [1]}) == {"a": [1]}


def flat(weights: Any) -> torch.Tensor:
    return torch.cat([torch.tensor(each, dtype=torch.float64).flatten() for each in weights])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_two_processes_decide_what_one_does(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    command = [sys.executable, "-m", "tests.schedules.ranks_runs"]
    ends = [str(tmp_path / "meeting"), str(tmp_path / "checkpoint")]
    processes = [
        subprocess.Popen([*command, str(rank), "2", *ends], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        texts = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    first, second = (json.loads(text.splitlines()[-1]) for text in texts)
    assert first == second
    done, again, pruned = first
    assert done == again
    for method, (rounds, weights) in (("easier", done), ("egp", pruned)):
        expected, alone = ranks_runs.story(ranks_runs.schedule(0, 1, method, None))
        assert rounds == expected
        # Gradients of half batches add up in another order.
        torch.testing.assert_close(flat(weights), flat(alone), rtol=1e-9, atol=1e-9)
