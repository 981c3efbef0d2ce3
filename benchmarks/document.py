"""What a part of the benchmarks found: tables of numbers, as JSON and as text.

A table keeps raw numbers, and beside each column how to write them: the text, and the page in the
documentation, are made from the JSON alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxreduce.files import write_atomically
from fxreduce.report import table as text

SCHEMA = 1
Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """The head of a column, and how a value is written, as in `str.format`."""

    name: str
    format: str = "{}"


@dataclass(frozen=True)
class Table:
    """Rows of raw values, None for what was not measured."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]

    @classmethod
    def of(
        cls,
        title: str,
        items: Iterable[Any],
        columns: Sequence[tuple[str, str, Callable[[Any], Value]]],
    ) -> Table:
        """A row for each item; a column is its name, its format and what it takes of an item."""
        heads = tuple(Column(name, form) for name, form, _ in columns)
        return cls(title, heads, [[get(item) for _, _, get in columns] for item in items])

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Table:
        columns = [Column(**each) for each in content["columns"]]
        return cls(content["title"], columns, content["rows"])

    def cells(self) -> list[list[str]]:
        """What is read: the values, written."""
        return [
            [
                "" if v is None else c.format.format(v)
                for c, v in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def is_text(self, place: int) -> bool:
        """Whether a column holds words, which are aligned left."""
        return all(row[place] is None or isinstance(row[place], str) for row in self.rows)

    def __str__(self) -> str:
        numbers = (place for place in range(len(self.columns)) if not self.is_text(place))
        left = next(numbers, len(self.columns))
        return text.table([each.name for each in self.columns], self.cells(), left=left)


@dataclass(frozen=True)
class Document:
    """A part's results, with all that is needed to judge them.

    Attributes:
        part: its name.
        about: what was compared, a paragraph each.
        bars: what is asked of the figures, in words.
        size: "whole" or "short", as `python -m benchmarks` runs it; "full", the part alone; "own"
            for a size that was chosen by hand.
        arguments: the size in full.
        machine: see `benchmarks.machine.describe`.
        run: `date` (UTC), `commit`, `load_before` and `load_after` (of one minute), and the
            `seconds` and `processor_seconds` that it took.
        tables: what was measured.
        chart: the name of the file beside this one that draws it, or None.
    """

    part: str
    about: Sequence[str]
    bars: Sequence[str]
    size: str
    arguments: dict[str, Any]
    machine: dict[str, Any]
    run: dict[str, Any]
    tables: Sequence[Table]
    chart: str | None = None

    @classmethod
    def read(cls, path: Path) -> Document:
        """The document in a file.

        Raises:
            ValueError: the file has another layout.
        """
        content = json.loads(path.read_text())
        if (schema := content.pop("schema", None)) != SCHEMA:
            raise ValueError(
                f"{path.name} has schema {schema}, {SCHEMA} is read: run the part anew"
            )
        content["tables"] = [Table.from_json(each) for each in content["tables"]]
        return cls(**content)

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=1) + "\n"

    def heading(self) -> str:
        """How large, where and when, in a line."""
        loads = [f"{self.run[key]:.1f}" for key in ("load_before", "load_after")]
        return (
            f"{self.part}, size {self.size}: {self.machine['cpu']}, {self.machine['cores']} cores, "
            f"{self.machine['threads']} threads, torch {self.machine['versions']['torch']}, "
            f"load {' to '.join(loads)}, {self.run['date']}"
        )

    def __str__(self) -> str:
        parts = [self.heading()]
        for table in self.tables:
            title = f"{table.title}\n" if len(self.tables) > 1 else ""
            parts.append(f"{title}{table}")
        return "\n\n".join(parts) + "\n"


def write_text(path: Path, content: str) -> None:
    """Put the text in the place of the file, whole."""
    write_atomically(path, lambda temporary: _write(temporary, content))


def _write(path: Path, content: str) -> None:
    path.write_text(content)
