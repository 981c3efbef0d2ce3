"""One run of one part: its command line, and what it leaves."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import charts
from benchmarks.document import Document, Table, write_text
from benchmarks.machine import commit, describe, load, processor_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = ("short", "whole", "full", "own")
_COMMON = ("json", "results", "label", "plot", "cache", "keep", "peak")


def parser_of(doc: str) -> argparse.ArgumentParser:
    """The arguments that every part has."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="write text, JSON and chart there"
    )
    parser.add_argument("--label", choices=SIZES, default="own", help=argparse.SUPPRESS)
    return parser


@dataclass(frozen=True)
class Run:
    """A part that has begun.

    Attributes:
        part: its name, and that of its files.
        doc: the docstring of its module.
        arguments: as parsed.
        began, used, load: when it began, and the processor seconds and the load by then.
    """

    part: str
    doc: str
    arguments: argparse.Namespace
    began: float
    used: float
    load: float

    @classmethod
    def begin(cls, part: str, doc: str, arguments: argparse.Namespace) -> Run:
        return cls(part, doc, arguments, time.monotonic(), processor_seconds(), load())

    def end(
        self,
        tables: Sequence[Table],
        bars: Sequence[str] = (),
        chart: Callable[[], Figure] | None = None,
    ) -> Document:
        """Print the tables, and write what the arguments ask for."""
        folder: Path | None = self.arguments.results
        drawn = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            drawn = self._draw(folder, chart)
        document = Document(
            part=self.part,
            about=about(self.doc),
            bars=bars,
            size=self.arguments.label,
            arguments=_plain(vars(self.arguments)),
            machine=describe(),
            run={
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
                "load_before": self.load,
                "load_after": load(),
                "seconds": round(time.monotonic() - self.began, 1),
                "processor_seconds": round(processor_seconds() - self.used, 1),
            },
            tables=tables,
            chart=drawn,
        )
        if folder is not None:
            write_text(folder / f"{self.part}.txt", str(document))
            write_text(folder / f"{self.part}.json", document.to_json())
        if self.arguments.json is not None:
            write_text(self.arguments.json, document.to_json())
        print(document, end="")
        return document

    def _draw(self, folder: Path, chart: Callable[[], Figure] | None) -> str | None:
        if chart is None:
            return None
        path = folder / f"{self.part}.svg"
        try:
            charts.save(chart(), path)
        except ImportError as error:
            print(f"no chart: {error}", file=sys.stderr)
            return None
        return path.name


def printed_alone(file: str, *arguments: object) -> str:
    """What a module of the benchmarks prints, run with these arguments by a process of its own."""
    command = [sys.executable, file, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def about(doc: str) -> list[str]:
    """The paragraphs of a docstring, without its commands."""
    paragraphs = doc.strip().split("\n\n")
    return [" ".join(each.split()) for each in paragraphs if not each.startswith("    ")]


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the size is made of."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
        if name not in _COMMON and value is not None
    }
