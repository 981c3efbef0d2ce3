"""Training by several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import by_two_ranks
from schedule_on_ranks import scheduled
from train_on_ranks import trained

HERE = Path(__file__).parent


def test_two_ranks_have_the_losses_weights_statistics_and_accuracy_of_one_process() -> None:
    one = trained()
    first, second = by_two_ranks([str(HERE / "train_on_ranks.py")])
    assert second == ""  # one rank prints
    two = json.loads(first)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12)
    # Weights, running statistics and how many batches they are of.
    assert list(two["state"]) == list(one["state"])
    for name, values in one["state"].items():
        assert two["state"][name] == pytest.approx(values, rel=1e-9, abs=1e-12)
    assert two["accuracy"] == one["accuracy"] > 0.8
    assert two["rank"] == 0.0


@pytest.mark.zoo
def test_two_ranks_decide_on_a_network_with_batch_norms_as_one_process_does() -> None:
    one = scheduled()
    first, _ = by_two_ranks([str(HERE / "schedule_on_ranks.py")])
    two = json.loads(first)
    assert two["removed"] == one["removed"]
    assert two["accuracies"] == one["accuracies"]
    for mine, theirs in zip(one["scores"], two["scores"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-6)
