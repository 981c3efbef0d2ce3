"""Imports go down only, and importing fxreduce loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxreduce

ROOT = Path(fxreduce.__file__).parent
# From the ground floor up; what stands together may import each other.
FLOORS = (
    ("errors", "extensions", "extras", "progress", "files", "plain", "timing", "versions"),
    ("data",),
    ("operators",),
    ("graph",),
    ("calibration",),
    ("training",),
    ("recipes",),
    ("passes",),
    ("report", "verify"),
    ("dynamo",),
    ("planning",),
    ("saving", "schedules"),
    ("analysis", "api", "backend", "registry"),
    ("__init__",),
    ("cli", "__main__"),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# Not needed to use fxreduce on a model that is already there.
HEAVY = ("torchvision", "timm", "transformers", "sklearn", "matplotlib", "tqdm", "numpy.random")
FILES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)
SOURCES = [*FILES, *sorted((ROOT / "passes").resolve().glob("*.py"))]


def part(path: Path) -> str:
    """The part of fxreduce that a file belongs to: a folder or a module of the root."""
    inside = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("passes", path.name)
    return inside.parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The parts of fxreduce that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            whole = node.module == "fxreduce"
            names = [f"fxreduce.{a.name}" for a in node.names] if whole else [str(node.module)]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            assert top != "passes", f"{path}: passes is imported as fxreduce.passes"
            if top == "fxreduce":
                first = rest.split(".")[0]
                yield first if first in FLOOR_OF else "__init__"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{part(path)}/{path.name}")
def test_imports_go_down_only(path: Path) -> None:
    own = part(path)
    assert own in FLOOR_OF, f"{own} has no floor yet: add it to FLOORS"
    for other in imported(path):
        assert FLOOR_OF[other] <= FLOOR_OF[own], f"{own} imports {other}"
        if FLOOR_OF[other] == FLOOR_OF[own]:
            assert other == own or len(FLOORS[FLOOR_OF[own]]) > 1


def test_the_rule_is_read_from_real_import_statements() -> None:
    readers = ROOT / "graph" / "readers.py"
    assert {"graph", "operators"} == set(imported(readers))
    assert "api" in set(imported(ROOT / "__init__.py"))


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > 500} == {}


def test_importing_fxreduce_loads_nothing_heavy() -> None:
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import fxreduce\n"
        "print(*(set(sys.modules) - before))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert loaded.isdisjoint(HEAVY)
    assert "fxreduce" in loaded


def test_importing_fxreduce_alone_does_not_need_the_extras() -> None:
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY[:-1]!r}))\n"  # None makes an import fail
        "import fxreduce, fxreduce.registry\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
