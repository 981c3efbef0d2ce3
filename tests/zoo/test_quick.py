"""One small variant of each family: captured, its sites as pinned, merged and equal in float64.

Half of the rectifiers are left out, so that more than batch-norms can be merged. `make zoo` looks
at all architectures, as they are, too.
"""

from __future__ import annotations

import pytest

from benchmarks.zoo.examine import Settings, examine
from benchmarks.zoo.pinned import inputs, load, proved, quick

TABLE = load()
INPUTS = inputs(TABLE)
SETTINGS = Settings(precise=True, parts=("half",))


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    """torch.export alone takes many times what all else does."""
    return (pytest.mark.zoo,) if TABLE[name]["rung"] == "torch.export" else ()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(name)) for name in proved(TABLE, quick(TABLE))]
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
