"""Several processes make the plan that one makes, from a share of the batches each."""

from __future__ import annotations

import json
from typing import Any

import torch

from tests.planning import ranks_plan
from tests.ranks import by_two_ranks

# Sums of two ranks are rounded in another order than those of one process.
ROUNDING = 1e-9


def assert_alike(found: Any, expected: Any) -> None:
    """Numbers up to rounding, anything else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, (list, tuple)) and any(isinstance(e, str) for e in expected):
        assert list(found) == list(expected)
    elif isinstance(expected, (list, tuple, float)):
        a, b = (torch.tensor(each, dtype=torch.float64) for each in (found, expected))
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    else:
        assert found == expected


# In one pair of processes, as these take longer to begin than to plan.
def test_two_ranks_have_the_plans_and_weights_of_one_process() -> None:
    tasks = ("plans", "few", "parted", "uneven", "own_budget")
    first, second = by_two_ranks(["-m", "tests.planning.ranks_plan", *tasks])
    assert first == second  # bit for bit
    found = json.loads(first)
    for task in tasks:
        assert_alike(found[task], json.loads(json.dumps(getattr(ranks_plan, task)())))
    assert found["plans"]["refit"]["fitted"]
    assert found["few"]["wide 4"]["fitted"]  # from the rows themselves
    assert found["own_budget"]["reasons"]  # with the error in digits
    assert found["parted"]["batches"] == 6


def test_what_one_rank_raises_all_raise_and_name_it() -> None:
    texts = by_two_ranks(["-m", "tests.planning.ranks_plan", "failures"])
    first, second = (json.loads(text)["failures"] for text in texts)
    *failed, fine = zip(first, second, strict=True)
    stories = dict(zip((task.__name__ for task in ranks_plan.TASKS), failed, strict=True))

    one, other = stories["not_finite"]
    assert one == other
    assert one["raised"] == "CalibrationError"
    assert one["message"].startswith("rank 1: the pre-activation of expand.2 must be finite")
    assert "in batch 3" in one["message"]
    # What all are asked for, all refuse, as one process does.
    for task, message in {
        "no_batches": "calibration needs at least one batch",
        "no_such_site": "include takes names of sites or globs over them; 'nothing.*' matches none",
        "other_weights": "the same weights and statistics; rank 1 has not what rank 0 has",
        "other_budgets": "all ranks must go the same way",
    }.items():
        assert all(message in each["message"] for each in stories[task])
        assert not any("rank 1: " in each["message"] for each in stories[task])
    one, other = stories["broken"]
    assert one["raised"] == "CalibrationError"
    assert one["message"] == "rank 1 has failed with ValueError: no labels here"
    assert other["raised"] == "ValueError"
    assert other["notes"] == ["on rank 1 of torch.distributed"]
    for task in ("interrupted", "signalled"):
        one, other = stories[task]
        assert one == other == {"raised": "PlanInterrupted", "sites": ["depth.2"]}
    one, other = fine
    assert one == other
    assert one["returned"]
