"""The report: its figures are those of hand counting, its text readable, its JSON complete."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.report.table import table
from tests.models import Ladder, Residual, Small, images, points, seeded, stored_entropies

BATCHES = images(6)


@pytest.fixture(scope="module")
def reduced() -> torch.fx.GraphModule:
    return fxreduce.apply(seeded(Small), BATCHES, budget=1)


@pytest.fixture(scope="module")
def report(reduced: torch.fx.GraphModule) -> fxreduce.Report:
    return fxreduce.report(reduced)


def test_the_sites_are_listed_with_entropy_and_fate(report: fxreduce.Report) -> None:
    expected = stored_entropies(seeded(Small), BATCHES)
    assert [(row.name, row.kind, row.removed) for row in report.sites] == [
        ("act", "relu", False),
        ("act2", "relu", True),
    ]
    assert {row.name: row.entropy for row in report.sites} == pytest.approx(expected, abs=1e-6)
    assert report.removed == ("act2",)
    assert report.rung == "symbolic trace"


def test_removed_names_stand_in_the_order_of_removal() -> None:
    model = seeded(Ladder)
    report = fxreduce.report(
        fxreduce.apply(model, [points(500, 1)], budget=3, compensate="identity")
    )
    assert report.removed == ("acts.0", "acts.2", "acts.3")
    assert [row.name for row in report.sites if row.removed] == ["acts.0", "acts.2", "acts.3"]
    assert [line.split()[0] for line in report.decisions[:3]] == list(report.removed)
    assert report.decisions[3] == "stopped: 3 are removed, as the budget says"


def test_operators_and_multiply_adds_are_those_of_hand_counting(report: fxreduce.Report) -> None:
    # 8 x 8 pixels: stem 3 -> 8 by 3 x 3, mix 8 -> 8 pointwise, head 8 -> 4 on one pixel.
    assert report.operators_before == 4
    assert report.macs_before == 64 * (3 * 8 * 9) + 64 * (8 * 8) + 8 * 4
    # The batch-norm has gone into the stem. Act2's map and mix, which need one pixel once that is
    # averaged first, have gone into the head. `act` still stands between.
    assert report.operators_after == 2
    assert report.macs_after == report.macs_before - 64 * (8 * 8)


class Chain(nn.Module):
    """Grouped, strided, transposed and one-dimensional operators, counted below by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 6, 5)
        self.tokens = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(x)).relu()
        return self.tokens(self.line(x.flatten(2)).transpose(1, 2))


@pytest.mark.parametrize("batch", [1, 5])
def test_multiply_adds_are_for_a_batch_of_one(batch: int) -> None:
    model = seeded(Chain)
    report = fxreduce.report(fxreduce.fuse(model, example_inputs=torch.randn(batch, 4, 6, 6)))
    grouped = 3 * 3 * (8 * 2 * 9)  # 3 x 3 outputs, two input channels in each group
    up = 3 * 3 * (8 * 4 * 4)  # each of 3 x 3 inputs reaches 2 x 2 outputs
    line = 32 * (6 * 4 * 5)  # 36 - 4 positions
    tokens = 32 * (6 * 10)
    assert report.macs_before == grouped + up + line + tokens


def test_merging_two_pointwise_operators_saves_what_the_figures_say() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 5, 1, bias=False))
    )
    report = fxreduce.report(fxreduce.apply(model, BATCHES, budget=1))
    assert (report.operators_before, report.operators_after) == (2, 1)
    assert (report.macs_before, report.macs_after) == (64 * (3 * 64 + 64 * 5), 64 * (3 * 5))


def test_refusals_say_where_and_why() -> None:
    report = fxreduce.report(fxreduce.apply(seeded(Residual), BATCHES, budget=2))
    assert report.refusals
    for refusal in report.refusals:
        assert refusal.where
        assert len(refusal.reason.split()) > 3
    assert len(set(report.refusals)) == len(report.refusals)


def test_a_merge_that_does_not_pay_is_refused_with_both_figures() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3))
    )
    x = torch.randn(2, 64, 32, 32)
    report = fxreduce.report(fxreduce.apply(model, [x], budget=1, compensate="identity"))
    (refusal,) = report.refusals
    assert refusal.where == "0 → 2"
    moved = 16 * 2 * 64 * (32 * 32 + 30 * 30)  # activations read and written
    merged = 2 * 64 * 64 * 25 * 30 * 30 + moved
    apart = 2 * 64 * 64 * 9 * (32 * 32 + 30 * 30) + moved + 16 * 2 * 64 * (2 * 32 * 32)
    assert refusal.reason == (
        f"merging does not pay: {merged / 1e6:.4g} M merged, {apart / 1e6:.4g} M apart (flops)"
    )


def test_the_largest_error_is_that_of_merged_against_unmerged(report: fxreduce.Report) -> None:
    assert report.max_error is not None
    assert 0 <= report.max_error < 1e-5


def test_json_holds_every_field(report: fxreduce.Report) -> None:
    content: dict[str, Any] = json.loads(report.to_json())
    assert content["schema"] == 1
    for name in (
        "rung", "operators_before", "operators_after", "macs_before", "macs_after", "max_error",
    ):  # fmt: skip
        assert content[name] == getattr(report, name), name
    assert content["removed"] == ["act2"]
    assert content["sites"][1] == {
        "name": "act2", "kind": "relu", "removed": True, "entropy": report.sites[1].entropy,
        "importance": report.sites[1].importance,
    }  # fmt: skip
    assert content["decisions"] == list(report.decisions)
    assert all(refusal.keys() >= {"where", "reason"} for refusal in content["refusals"])


def test_the_text_is_a_sentence_a_table_and_the_reasons(report: fxreduce.Report) -> None:
    first, *rest = str(report).split("\n\n")
    assert first.startswith("1 of 2 rectifiers removed, 4 → 2 affine operators, 17,952 → 13,856")
    assert "merged equals unmerged to" in first
    assert first.endswith("(captured by symbolic trace)")
    rows = rest[0].splitlines()
    assert rows[0].split() == ["site", "kind", "entropy", "(bits)", "decision"]
    assert rows[2].split()[::3] == ["act", "kept"]
    assert rows[3].split()[3:] == ["removed", "1"]
    assert rest[1].startswith("- act2 removed at 0.")
    assert max(map(len, str(report).splitlines())) < 200


def test_the_text_of_a_fusion_alone_names_no_entropies() -> None:
    text = str(fxreduce.report(fxreduce.fuse(seeded(Residual))))
    assert text.startswith("0 of 2 rectifiers removed, 5 → 3 affine operators (captured by")
    assert "multiply-adds" not in text.splitlines()[0]


@pytest.mark.parametrize("other", [nn.Linear(2, 2), torch.fx.symbolic_trace(nn.ReLU()), None, 3])
def test_what_fxreduce_did_not_make_has_no_report(other: Any) -> None:
    with pytest.raises(
        fxreduce.UnsupportedError, match=r"belongs to what fxreduce\.apply, fuse or plan\.apply"
    ):
        fxreduce.report(other)


@pytest.mark.parametrize(
    ("form", "rung"),
    [
        (torch.fx.symbolic_trace, "graph module"),
        (lambda model: torch.export.export(model, (BATCHES[0],)), "exported program"),
    ],
)
def test_the_report_says_how_the_model_was_captured(form: Any, rung: str) -> None:
    assert fxreduce.report(fxreduce.fuse(form(seeded(Small)))).rung == rung


def test_a_table_aligns_words_to_the_left_and_numbers_to_the_right() -> None:
    text = table(("name", "count"), [("one", "1"), ("eleven", "11")])
    assert text.splitlines() == ["name    count", "------  -----", "one         1", "eleven     11"]


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("name", "count"), []).splitlines() == ["name  count", "----  -----"]
