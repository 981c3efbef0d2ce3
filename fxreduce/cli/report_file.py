"""Writing a report as a page: its destination checked before the long work, complete afterwards."""

from __future__ import annotations

from pathlib import Path

import fxreduce
from fxreduce.cli.errors import UsageError
from fxreduce.cli.saving import require_writable
from fxreduce.errors import UnsupportedError
from fxreduce.files import write_atomically

_SUFFIXES = (".html", ".htm")


def check_report(path: Path) -> None:
    """Refuse a destination that cannot be written, before any long work is done for it.

    Raises:
        UnsupportedError: The suffix is not that of a page.
        UsageError: The folder does not exist or cannot be written to, or the path is a folder.
    """
    if path.suffix not in _SUFFIXES:
        raise UnsupportedError(f"--report {path}: a report is a page; name a file that ends .html")
    require_writable("--report", path)


def save_report(path: Path, report: fxreduce.Report) -> str:
    """Write the page; returns a sentence about the file.

    Raises:
        UsageError: The file cannot be written.
    """
    page = report.to_html()
    try:
        write_atomically(path, lambda temporary: _write(temporary, page))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error
    return f"wrote the report to {path}, which any browser opens"


def _write(path: Path, page: str) -> None:
    path.write_text(page, encoding="utf-8")
