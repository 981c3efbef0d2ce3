"""The table and the chart of a comparison."""

from __future__ import annotations

import json

import pytest

from fxreduce.cli.comparison import Comparison, Outcome
from fxreduce.cli.rounds import Point
from fxreduce.cli.schedule_chart import comparison_chart
from fxreduce.recipes.recipe import Published
from fxreduce.report.report import Report


def point(method: str, number: int, test: float, *, counts: bool = True) -> Point:
    macs = None if method == "tlc" else 2_000_000 - 500_000 * number
    return Point(method, number, 2 * number, 0.9, test, 4 * number, macs, 0.001, 1.5, counts)


@pytest.fixture
def comparison() -> Comparison:
    report = Report("symbolic trace", (), ("relu",), (), (), 5, 4, 100, 80, 1e-9)
    easier = (point("easier", 0, 0.93), point("easier", 1, 0.5, counts=False))
    outcomes = (
        Outcome("easier", easier, 0, "the accuracy falls", report),
        Outcome("tlc", (point("tlc", 0, 0.93), point("tlc", 1, 0.94)), 1, "no site", report),
    )
    published = (Published("easier", "EASIER, 2024", (0, 2, 9), (92.47, 91.5, 80.0)),)
    return Comparison("a on b", "a", "b", "cpu", 0, 4, outcomes, published)


def test_the_table_sets_published_accuracies_beside_measured_ones(comparison: Comparison) -> None:
    title, body, notes, summary = str(comparison).split("\n\n")
    assert title == "a on b"
    header, _, *rows = body.splitlines()
    assert len({len(header), *(len(row) for row in body.splitlines()[1:2])}) == 1
    assert [row.split() for row in rows[:2]] == [
        ["easier", "0", "0", "90.0%", "93.0%", "92.47%", "2.00", "M", "1.00", "1.50x", "0", "yes"],
        ["easier", "1", "2", "90.0%", "50.0%", "91.50%", "1.50", "M", "1.00", "1.50x", "4", "no"],
    ]
    assert rows[2].split()[:5] == ["tlc", "0", "0", "90.0%", "93.0%"]
    assert "published      as EASIER, 2024" in notes
    first, second = summary.splitlines()
    assert first.startswith("easier: 1 of 0 rectifiers removed")
    assert "test accuracy 93.0% -> 93.0%" in first
    assert "test accuracy 93.0% -> 94.0%, 1.50 times as fast, 4 epochs; stopped: no site" in second


def test_nothing_is_said_of_publications_where_none_is_known(comparison: Comparison) -> None:
    from dataclasses import replace

    assert "published" not in str(replace(comparison, published=()))


def test_the_json_holds_every_point_and_report(comparison: Comparison) -> None:
    content = json.loads(comparison.to_json())
    assert content["outcomes"][0]["points"][1]["test"] == 0.5
    assert content["outcomes"][1]["report"]["macs_after"] == 80
    assert content["published"][0]["accuracy"] == [92.47, 91.5, 80.0]


def test_the_chart_has_a_line_for_each_method_in_each_panel(comparison: Comparison) -> None:
    figure = comparison_chart(comparison)
    removed, macs, faster = figure.axes
    assert [line.get_xydata().tolist() for line in removed.lines] == [
        [[0, 93], [2, 50]],
        [[0, 93], [2, 94]],
    ]
    assert macs.lines[0].get_xydata().tolist() == [[2.0, 93], [1.5, 50]]
    assert len(macs.lines[1].get_xydata()) == 0  # it could not be counted
    assert faster.lines[0].get_xdata().tolist() == [1.5, 1.5]
    assert "hollow" in figure.get_suptitle()
    assert [line.get_label() for line in removed.lines] == ["EASIER, 4 epochs", "TLC, 4 epochs"]
