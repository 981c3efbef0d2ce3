"""The page on benchmarks shows the figures of the JSON, and says what was not run."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from benchmarks.document import Column, Document, Table
from benchmarks.machine import RESULTS, ROOT
from benchmarks.parts import PARTS

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
PAGE = ROOT / "docs" / "benchmarks.md"


def build(folder: Path, results: Path) -> str:
    """The page's words, built from the results, warnings being errors."""
    from sphinx.application import Sphinx

    source, out = folder / "source", folder / "out"
    source.mkdir()
    (source / "index.md").write_text(PAGE.read_text())
    app = Sphinx(
        source, None, out, folder / "trees", "html",
        confoverrides={
            "extensions": ["myst_parser", "benchmark_results"],
            "benchmark_results": str(results),
        },
        status=None, warningiserror=True,
    )  # fmt: skip
    app.build()
    return (out / "index.html").read_text()


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(autouse=True)
def _extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))


def document(part: str) -> Document:
    run = {
        "date": "2020-01-02T03:04:05+00:00", "commit": "abc", "load_before": 0.25,
        "load_after": 12.75, "seconds": 90.0, "processor_seconds": 150.0,
    }  # fmt: skip
    machine = {
        "cpu": "An abacus", "cores": 7, "threads": 5, "memory_gib": 1.5, "system": "S",
        "python": "3.11", "versions": {"torch": "9.9", "timm": None},
    }  # fmt: skip
    columns = (Column("case"), Column("ratio", "{:.2f}x"), Column("none"))
    rows = [["lost", 0.4321, None], ["won", 2.3456, None]]
    table = Table("A table", columns, rows)
    return Document(
        part, ["What `it` is."], ["At least so."], "own", {"runs": 3}, machine, run, [table],
        f"{part}.svg",
    )  # fmt: skip


def test_it_shows_what_the_json_says_and_names_what_is_missing(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "fusion.json").write_text(document("fusion").to_json())
    (results / "fusion.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    page = build(tmp_path, results)
    text = words(page)
    for shown in ("lost 0.43x", "won 2.35x", "An abacus", "At least so.", "Size: own (runs 3)."):
        assert shown in text
    assert "fusion own 2020-01-02 03:04 abc 1.5 2.5 0.2 12.8" in text
    assert "fusion.svg" in page
    assert text.count("Not run yet.") == len(PARTS) - 1


def test_every_field_of_the_json_is_documented() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    section = page.split("\n## Benchmark\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert documented == set(json.loads(document("fusion").to_json()))


def test_without_any_results_it_still_builds(tmp_path: Path) -> None:
    text = words(build(tmp_path, tmp_path))
    assert text.count("Not run yet.") == len(PARTS) + 1


def test_it_has_a_section_for_every_part_and_no_figure_of_its_own() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^```\{benchmark\} (\w+)$", page, re.MULTILINE) == [
        part.name for part in PARTS
    ]
    listed = re.search(r"^```\{benchmark-runs\}\n(.*)\n```$", page, re.MULTILINE)
    assert listed is not None
    assert listed[1].split() == [part.name for part in PARTS]
    assert re.findall(r"\d", page) == []


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_results_that_are_kept_are_of_this_layout_and_small(path: Path) -> None:
    kept = Document.read(path)
    assert kept.part == path.stem
    assert kept.size in ("short", "whole", "full")
    assert path.with_suffix(".txt").read_text() == str(kept)
    files = [path, *([RESULTS / kept.chart] if kept.chart else [])]
    assert all(each.stat().st_size < 200_000 for each in files)
