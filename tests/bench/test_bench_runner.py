"""The runner of the benchmarks: every part runs, failures are named, results say what they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import charts, machine
from benchmarks.__main__ import main
from benchmarks.document import SCHEMA, Column, Document, Table
from benchmarks.parts import PARTS, Part
from benchmarks.run import Run, about, parser_of
from tests.bench import stand_in

pytest.importorskip("matplotlib")
pytest.importorskip("timm")
GOOD = Part("stand_in", "tests.bench.stand_in", {"short": "--sizes 10"})
BROKEN = Part("broken", "tests.bench.stand_in", {"short": "--fail", "whole": "--fail"})


def test_a_part_that_fails_is_named_and_the_others_still_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--short", "--results", str(tmp_path)], (BROKEN, GOOD)) == 1
    said = capfd.readouterr().out
    assert "FAILED: broken, exit code 3" in said
    assert "1 of 2 parts" in said
    document = Document.read(tmp_path / "stand_in.json")
    assert (document.size, document.arguments["sizes"]) == ("short", [10])
    assert (tmp_path / "stand_in.txt").read_text() == str(document)
    assert {each.name for each in tmp_path.iterdir()} == {
        f"stand_in.{s}" for s in ("json", "txt", "svg")
    }


def test_parts_are_chosen_by_name_and_run_in_full_on_request(tmp_path: Path) -> None:
    chosen = ["stand_in", "--full", "--results", str(tmp_path)]
    assert main(chosen, (BROKEN, GOOD)) == 0
    document = Document.read(tmp_path / "stand_in.json")
    assert (document.size, document.arguments["sizes"]) == ("full", [1000, 10])


def test_an_unknown_part_is_refused_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["fussion"])
    said = capsys.readouterr().err
    assert "no part 'fussion'" in said
    assert "fusion" in said.split("there are ")[1]


def test_a_part_runs_by_its_path_too(tmp_path: Path) -> None:
    root = Path(machine.__file__).parent
    command = [sys.executable, str(root / "scale.py"), "--help"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--kinds" in run.stdout


def run_stand_in(*given: str) -> Document:
    arguments = parser_of("A part.").parse_args(given)
    columns = (Column("case"), Column("ratio", "{:.2f}x"), Column("note"))
    table = Table("Ratios", columns, [["a", 1.2345, None], ["b", None, "refused"]])
    return Run.begin("stand_in", "A part.\n\n    a command\n\nWith `code`.", arguments).end([table])


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    document = run_stand_in("--json", str(tmp_path / "out.json"), "--label", "whole")
    again = Document.read(tmp_path / "out.json")
    assert again.to_json() == document.to_json()
    assert json.loads(document.to_json())["schema"] == SCHEMA
    assert again.about == ["A part.", "With `code`."]
    assert again.tables[0].cells() == [["a", "1.23x", ""], ["b", "", "refused"]]
    assert again.tables[0].rows[0][1] == 1.2345


def test_results_of_another_layout_are_refused(tmp_path: Path) -> None:
    content = json.loads(run_stand_in().to_json()) | {"schema": SCHEMA + 1}
    (tmp_path / "old.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"old.json has schema {SCHEMA + 1}, {SCHEMA} is read"):
        Document.read(tmp_path / "old.json")


def test_results_describe_the_machine_and_the_run() -> None:
    document = run_stand_in()
    assert document.machine["cpu"]
    assert document.machine["cores"] == len(os.sched_getaffinity(0))
    assert document.machine["threads"] == 1  # as in all tests
    assert document.machine["versions"]["torch"] == version("torch")
    assert document.machine["memory_gib"] > 0.5
    assert document.size == "own"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", document.run["date"])
    assert document.run["load_before"] >= 0
    assert document.run["processor_seconds"] >= 0


def test_the_commit_is_none_outside_of_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert machine.commit() is None


def test_the_paragraphs_of_a_docstring_are_without_its_commands() -> None:
    assert about(stand_in.__doc__ or "")[0].startswith("A part of the benchmarks")
    assert about("One.\n\n    make it\n\nTwo\nlines.\n") == ["One.", "Two lines."]


def test_charts_are_the_same_for_the_same_figures_and_mark_what_gains_nothing(
    tmp_path: Path,
) -> None:
    for name in ("a.svg", "b.svg"):
        figure = charts.ratios(["x", "y"], {"eager": [0.9, 2.0], "inductor": [1.1, None]}, "times")
        charts.save(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [1.0, 1.0]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 2.0, 1.1]


def test_every_part_has_a_short_size() -> None:
    names = [part.name for part in PARTS]
    assert len(names) == len(set(names))
    for part in PARTS:
        assert part.arguments("short")
        assert part.arguments("full") == []
