"""Directives that show what the benchmarks found: tables, charts and machines, from their JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from benchmarks.document import Document

MISSING = "Not run yet."
_RUNS = (
    "part",
    "size",
    "date (UTC)",
    "commit",
    "minutes",
    "processor minutes",
    "load before",
    "after",
)
_MACHINE = {
    "cpu": "processor",
    "cores": "cores",
    "threads": "threads of torch",
    "memory_gib": "memory, GiB",
    "system": "system",
    "python": "Python",
}


class _Results(SphinxDirective):
    def document(self, part: str) -> Document | None:
        """The results of a part; None where it has not been run."""
        path = self.folder / f"{part}.json"
        self.env.note_dependency(str(path))
        return Document.read(path) if path.is_file() else None

    @property
    def folder(self) -> Path:
        return (Path(self.env.srcdir) / self.config.benchmark_results).resolve()


class BenchmarkDirective(_Results):
    """What one part compares, what is asked of it, and what it found."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        document = self.document(self.arguments[0])
        if document is None:
            return [nodes.note("", nodes.paragraph("", MISSING))]
        found: list[nodes.Node] = [_paragraph(each) for each in document.about]
        if document.bars:
            found.append(_paragraph("What is asked of it:"))
            found.append(_bullets(document.bars))
        size = ", ".join(f"{name} {_written(value)}" for name, value in document.arguments.items())
        found.append(_paragraph(f"Size: {document.size} ({size})."))
        if document.chart is not None:
            found.append(self._image(document))
        tables = (
            _table(each.title, [column.name for column in each.columns], each.cells())
            for each in document.tables
        )
        return [*found, *tables]

    def _image(self, document: Document) -> nodes.Node:
        here = Path(self.env.doc2path(self.env.docname)).parent
        address = os.path.relpath(self.folder / str(document.chart), here)
        return nodes.image(uri=Path(address).as_posix(), alt=f"{document.part}: the figures below")


class RunsDirective(_Results):
    """When, how large and on which machines the parts named in the content ran."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        named = " ".join(self.content).split()
        documents = [each for name in named if (each := self.document(name)) is not None]
        if not documents:
            return [nodes.note("", nodes.paragraph("", MISSING))]
        rows = [
            [
                each.part,
                each.size,
                str(each.run["date"])[:16].replace("T", " "),
                str(each.run["commit"] or ""),
                f"{each.run['seconds'] / 60:.1f}",
                f"{each.run['processor_seconds'] / 60:.1f}",
                f"{each.run['load_before']:.1f}",
                f"{each.run['load_after']:.1f}",
            ]
            for each in documents
        ]
        return [_table("Runs", _RUNS, rows), *_machines(documents)]


def _machines(documents: Sequence[Document]) -> Iterable[nodes.Node]:
    """Every machine, or state of one, with the parts that ran there."""
    seen: list[tuple[dict[str, object], list[str]]] = []
    for each in documents:
        same = [parts for machine, parts in seen if machine == each.machine]
        (same[0] if same else _added(seen, each.machine)).append(each.part)
    for machine, parts in seen:
        versions = machine["versions"]
        assert isinstance(versions, dict)
        facts = [[title, str(machine[key])] for key, title in _MACHINE.items()]
        facts += [[name, version] for name, version in versions.items() if version is not None]
        yield _table(f"The machine of {', '.join(parts)}", ["", ""], facts)


def _added(
    seen: list[tuple[dict[str, object], list[str]]], machine: dict[str, object]
) -> list[str]:
    parts: list[str] = []
    seen.append((machine, parts))
    return parts


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> nodes.Node:
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    if any(header):
        group += nodes.thead("", _row(header))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", nodes.title(title, title), group, classes=["figures"])


def _row(cells: Sequence[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph(each, each)) for each in cells))


def _paragraph(text: str) -> nodes.paragraph:
    pieces = re.split(r"`([^`]+)`", text)
    return nodes.paragraph(
        "",
        "",
        *(
            nodes.literal(piece, piece) if number % 2 else nodes.Text(piece)
            for number, piece in enumerate(pieces)
        ),
    )


def _bullets(texts: Sequence[str]) -> nodes.bullet_list:
    return nodes.bullet_list("", *(nodes.list_item("", _paragraph(each)) for each in texts))


def _written(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives, and where the results are, from the documentation's folder."""
    app.add_config_value("benchmark_results", "../benchmarks/results", "env")
    app.add_directive("benchmark", BenchmarkDirective)
    app.add_directive("benchmark-runs", RunsDirective)
    return {"parallel_read_safe": True}
