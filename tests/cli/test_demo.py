"""The demonstration, on one small network that trains for a moment."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fxreduce.cli import demo
from fxreduce.cli.demo import Row, Settings, run
from fxreduce.cli.demo_table import as_json, as_text


class Tiny(nn.Module):
    """Two convolutions, a rectifier each, a batch-norm and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.features(x)
        return logits


SETTINGS = Settings(size=8, epochs=8, rounds=2, networks=("tiny",), quiet=True)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.NETWORKS, "tiny", Tiny)
        return run(SETTINGS)


def test_each_way_is_a_row_and_multiply_adds_equal_ptflops(rows: list[Row]) -> None:
    assert [(row.way.label, row.way.compensate) for row in rows] == [
        ("none", "identity"),
        ("auto", "identity"),
        ("auto", "channel"),
        ("auto", "refit"),
        ("50%", "identity"),
        ("50%", "channel"),
        ("50%", "refit"),
    ]
    for row in rows:
        assert row.before.macs == row.report.macs_before == 8 * 8 * (8 * 9 + 16 * 8) + 64 * 10
        assert row.after.macs == row.report.macs_after
        assert row.report.max_error is not None
        assert row.report.max_error < 1e-5


def test_without_removals_merging_keeps_the_accuracy(rows: list[Row]) -> None:
    assert rows[0].report.removed == ()
    assert rows[0].after.accuracy == rows[0].before.accuracy
    assert rows[0].before.accuracy > 0.2  # twice what guessing has


def test_the_fixed_fraction_is_removed(rows: list[Row]) -> None:
    assert [len(row.report.removed) for row in rows[4:]] == [1, 1, 1]


def test_threads_and_mode_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.NETWORKS, "tiny", Tiny)
    threads = torch.get_num_threads()
    run(Settings(size=8, epochs=1, rounds=1, networks=("tiny",), quiet=True))
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_a_count_that_ptflops_does_not_share_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.NETWORKS, "tiny", Tiny)
    monkeypatch.setattr(demo, "ptflops_macs", lambda module, shape: 1)
    with pytest.raises(AssertionError, match="but ptflops counts"):
        run(Settings(size=8, epochs=1, rounds=1, networks=("tiny",), quiet=True))


def test_the_text_is_one_aligned_table_its_notes_and_a_sentence(rows: list[Row]) -> None:
    first, notes, sentence = as_text(rows, SETTINGS).split("\n\n")
    lines = first.splitlines()
    assert lines[0].split("  ")[0] == "network"
    assert len(lines) == 2 + len(rows)
    assert len({len(line) for line in lines[1:]}) == 1
    assert "ptflops counts the same" in notes
    assert sentence.startswith("Without retraining, auto makes the tiny network ")
    assert sentence.count("\n") == 0


def test_the_json_holds_every_row_with_its_report(rows: list[Row]) -> None:
    content = json.loads(json.dumps(as_json(rows, SETTINGS)))
    assert content["settings"]["size"] == 8
    assert [row["way"]["label"] for row in content["rows"]][:2] == ["none", "auto"]
    assert content["rows"][4]["report"]["macs_after"] == rows[4].after.macs
    assert content["rows"][4]["ratio"] == rows[4].ratio
