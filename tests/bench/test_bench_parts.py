"""Every part takes the sizes that it is given, and writes what the documentation can show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import (
    backend,
    calibration,
    cost_model,
    coverage,
    economy,
    frontier,
    fusion,
    peers,
    pruning,
    retraining,
    scale,
)
from benchmarks.document import Document
from benchmarks.parts import PARTS, Part

TIMES = fusion.Times(3.0, 2.0, 1.0)


def fusion_figures(name: str, arguments: Any) -> Iterator[fusion.Figures]:
    for batch in fusion.CASES[name].batches:
        compiled = None if arguments.no_inductor else TIMES
        yield fusion.Figures(name, batch, 2, 5, 3, 1e-15, TIMES, compiled)


def peer_figures(case: str, model: Any, images: Any, runs: int) -> Iterator[peers.Figures]:
    for runtime in peers.PEERS:
        yield peers.Figures(case, len(images), runtime, 2.0, 1.0, 1e-7, 1e-7, 2e-7)
    yield peers.Figures(case, len(images), "onnxruntime", None, 1.0, 1e-7, None, 1e-7, "refused")


def frontier_rows(subject: Any, arguments: Any) -> Iterator[frontier.Row]:
    row = (subject.name, subject.seed)
    speed = None if arguments.no_inductor else 2.0
    for way in arguments.ways:
        yield frontier.Row(*row, way, "1 point", 8, 17, 0.98, 0.975, 0.5, 1.5, speed)


def pruning_rows(subject: Any, arguments: Any) -> Iterator[pruning.Row]:
    row = (subject.name, subject.seed, "eager")
    yield pruning.Row(*row, pruning.OURS, 0.98, None, 0.975, None, 2.0)
    yield pruning.Row(*row, "magnitude", 0.98, 0.5, 0.2, 0.4, 2.0)
    yield pruning.Row(*row, "random", 0.98, note="cannot")


def retraining_rows(subject: Any, way: str, arguments: Any) -> Iterator[retraining.Row]:
    for removed in range(4):
        accuracy = 0.98 - 0.004 * removed
        row = (subject.name, subject.seed, way, removed, 17, accuracy, 2 * removed, False)
        yield retraining.Row(*row)


def image_rows(name: str, arguments: Any) -> Iterator[economy.Row]:
    for count in arguments.counts:
        yield economy.Row(name, count, arguments.draws, 0.98, 0.975, 0.97)


def examine_nothing(
    names: list[str], results: Path, settings: Any, *, examination: Any, limits: Any,
    jobs: int, known: Any, told: Any,
) -> None:  # fmt: skip
    record = {"status": "equal", "sites": 3, "operators": [5, 2]}
    results.write_text("".join(json.dumps({"name": name} | record) + "\n" for name in names))


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def subject(name: str, seed: int, cache: Path, epochs: int) -> SimpleNamespace:
        return SimpleNamespace(name=name, seed=seed)

    monkeypatch.setattr(
        calibration, "measure", lambda name, _: calibration.Figures(name, *[1.0] * 9)
    )
    monkeypatch.setattr(
        economy, "figures_of", lambda name, _: economy.Figures(name, 16, 8, 30.0, 25.0, 500, 900)
    )
    monkeypatch.setattr(economy, "rows", image_rows)
    monkeypatch.setattr(fusion, "measure", fusion_figures)
    monkeypatch.setattr(
        backend, "measure", lambda *given: backend.Figures(*given[:3], 2.0, 1.0, 1.0, 9.0, 9.5, 0.0)
    )
    monkeypatch.setattr(backend, "overhead", lambda: 5.0)
    monkeypatch.setattr(scale, "measure_chain", lambda kind, n: scale.Chain(kind, n, 1, n / 1000))
    monkeypatch.setattr(scale, "measure_model", lambda name: scale.Whole(name, 100, 50, 2.0))
    monkeypatch.setattr(
        cost_model, "rate", lambda *given: cost_model.Rated(given[0], (1.0, 2.0), (3.0, 4.0))
    )
    monkeypatch.setattr(coverage, "sweep", examine_nothing)
    monkeypatch.setattr(
        peers, "subjects", lambda arguments: [(name, None) for name in arguments.cases]
    )
    monkeypatch.setattr(peers, "measure", peer_figures)
    for module, rows in (
        (frontier, frontier_rows),
        (pruning, pruning_rows),
        (retraining, retraining_rows),
    ):
        monkeypatch.setattr(module.Subject, "load", subject)
        monkeypatch.setattr(module, "rows", rows)
    monkeypatch.setattr(pruning, "pruning_library", lambda: None)


@pytest.mark.parametrize("size", ["short", "whole"])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_takes_its_size_and_writes_tables_and_a_chart(
    part: Part, size: str, tmp_path: Path
) -> None:
    module = import_module(part.module)
    given = [*part.arguments(size), "--results", str(tmp_path), "--label", size]
    assert not module.main(given)
    document = Document.read(tmp_path / f"{part.name}.json")
    assert (document.part, document.size) == (part.name, size)
    assert document.about[0] == module.__doc__.splitlines()[0]
    assert all(table.rows for table in document.tables)
    text = (tmp_path / f"{part.name}.txt").read_text()
    assert all(" ".join(cells) in " ".join(text.split()) for cells in named(document))
    if part.name not in ("zoo", "economy"):  # which have nothing to draw
        assert document.chart == f"{part.name}.svg"
        assert (tmp_path / document.chart).stat().st_size < 200_000


def named(document: Document) -> list[list[str]]:
    """The cells of every row that are not empty."""
    cells = [row for table in document.tables for row in table.cells()]
    return [[" ".join(cell.split()) for cell in row if cell] for row in cells]


def test_the_growth_on_the_page_is_that_of_the_chains() -> None:
    chains = [scale.Chain("linear", n, 1, seconds) for n, seconds in ((100, 1.0), (1000, 15.0))]
    table, _ = scale.tables(chains, [scale.Whole("swin_b", 3, 2, 1.0)])
    assert table.cells()[0][-1] == ""
    assert table.rows[1][-1] == pytest.approx(scale.growth(*chains))


def test_weights_that_were_trained_for_less_long_have_a_file_of_their_own() -> None:
    usual = frontier.weights_file("resnet18", 0, frontier.EPOCHS)
    assert usual == "resnet18-0.safetensors"
    assert frontier.weights_file("resnet18", 0, 6) != usual


def test_what_is_within_a_point_is_told_of_the_means_over_the_seeds() -> None:
    accuracies = {0: (0.98, 0.96), 1: (0.97, 0.97), 2: (0.95, 0.972), 3: (0.99, 0.9)}
    found = [
        retraining.Row("resnet18", seed, "refit", removed, 17, accuracy, 4 * removed, removed == 3)
        for removed, both in accuracies.items()
        for seed, accuracy in enumerate(both)
    ]
    (curve,) = retraining.curves(found)
    assert (curve.within, curve.epochs, curve.left_out) == (2, 8, 2)
    table = retraining.by_removals([curve], ["refit"])
    assert [row[1:] for row in table.cells()] == [
        ["0", "97.00%"], ["1", "97.00%"], ["2", "96.10%"], ["3", "94.50%"],
    ]  # fmt: skip


def test_rounds_that_were_kept_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--seeds", "0", "--ways", "refit", "--keep", str(tmp_path / "kept")]
    results = []
    for name in ("first", "again"):
        path = tmp_path / f"{name}.json"
        retraining.main([*command, "--json", str(path)])
        results.append(Document.read(path).tables)
        monkeypatch.setattr(retraining, "rows", None)
    assert results[0] == results[1]


def test_coverage_names_what_differs_from_the_pinned_table() -> None:
    pinned = {
        "timm:a": {"status": "equal", "sites": 3},
        "timm:b": {"status": "excluded", "reason": "r"},
    }
    found = {"timm:a": {"status": "wrong", "sites": 3, "reason": "off by 1"}}
    now, known, excluded, wrong = coverage.tables(found, pinned)
    assert dict(zip([c.name for c in now.columns], now.rows[1], strict=True)) == {
        "library": "timm", "examined": 1, "equal": 0, "other than pinned": 1, "rectifiers": 3,
        "operators": 0, "merged": 0,
    }  # fmt: skip
    assert known.rows[1] == ["timm", 2, 1, 0, 1]
    assert excluded.rows == [["timm:b", "r"]]
    assert wrong.rows == [["timm:a", "off by 1"]]
