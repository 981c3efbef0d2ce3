"""One small variant of each family: captured, its sites as pinned, merged and equal in float64.

Half of the rectifiers are left out, so that more than batch-norms can be merged. `make zoo` looks
at all architectures, as they are, too.
"""

from __future__ import annotations

import math

import pytest

from benchmarks.zoo.architectures import family
from benchmarks.zoo.examine import Settings, examine
from benchmarks.zoo.pinned import inputs, load, proved, quick

TABLE = load()
INPUTS = inputs(TABLE)
SETTINGS = Settings(precise=True, parts=("half",))


LARGEST = 3e12  # weights times numbers of the input, which the multiply-adds grow with
NAMES = proved(TABLE, quick(TABLE))


def is_slow(name: str) -> bool:
    """Whether the model is large, or takes torch.export, which alone takes most of the time."""
    large = TABLE[name]["weights"] * math.prod(INPUTS[name].shape) > LARGEST
    return large or TABLE[name]["rung"] == "torch.export"


def test_the_quick_list_has_120_families() -> None:
    assert len({family(name) for name in NAMES if not is_slow(name)}) >= 120


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=(pytest.mark.zoo,) if is_slow(name) else ()) for name in NAMES],
)
def test_a_family_is_captured_and_merged_and_a_wrong_weight_is_noticed(name: str) -> None:
    pinned = TABLE[name]
    record = examine(name, SETTINGS, INPUTS[name])
    assert record["status"] == "equal", record
    assert record["half_error"] <= 1e-9
    assert record["control"] > 0
    assert (record["rung"], record["sites"]) == (pinned["rung"], pinned["sites"])
    if "half" in pinned:  # not fewer merges than were seen before
        assert record["half"][1] <= pinned["half"][1]
