"""Several processes make the plan that one makes, from a share of the batches each."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.planning import ranks_plan
from tests.ranks import by_two_ranks

# Sums of two ranks are rounded in another order than those of one process.
ROUNDING = 1e-9


def by_ranks(task: str) -> Any:
    """What two processes find, which is the same, bit for bit."""
    first, second = by_two_ranks(["-m", "tests.planning.ranks_plan", task])
    assert first == second
    return json.loads(first)


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


@pytest.mark.parametrize("task", ["plans", "few", "parted", "uneven"])
def test_two_ranks_have_the_plans_and_weights_of_one_process(task: str) -> None:
    assert_alike(by_ranks(task), json.loads(json.dumps(getattr(ranks_plan, task)())))
