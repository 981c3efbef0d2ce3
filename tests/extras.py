"""Which test modules and tests cannot run here, because an optional package is missing.

The core needs torch and networkx alone, and its tests run with these, on every version of torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# Packages of the extras that tests and what they test import.
EXTRAS = (
    "PIL", "matplotlib", "numpy", "onnx", "onnxruntime", "safetensors", "sklearn", "timm",
    "torchvision", "transformers",
)  # fmt: skip
# The command line's own models, images and digits are extras.
OF_FOLDERS = {"cli": ("PIL", "numpy", "safetensors", "sklearn", "timm", "torchvision")}
ROOT = Path(__file__).parent.parent


def missing(path: Path, seen: frozenset[Path] = frozenset()) -> list[str]:
    """The optional packages that a test module imports and that are not installed."""
    needed = OF_FOLDERS.get(path.parent.name, ())
    found = {name for name in needed if find_spec(name) is None}
    for name in _imported(path):
        top, file = name.partition(".")[0], f"{name.replace('.', '/')}.py"
        # A bare name is a module of `tests`: pytest puts that folder on the path.
        module = ROOT / file if top in ("tests", "benchmarks") else ROOT / "tests" / file
        if top in EXTRAS and find_spec(top) is None:
            found.add(top)
        elif module.is_file() and module not in seen:
            found.update(missing(module, seen | {path}))
    return sorted(found)


def lacked(error: BaseException | None) -> str | None:
    """The optional package that is not installed and that an error, or one behind it, is about."""
    while error is not None:
        top = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else None
        if top in EXTRAS and find_spec(top) is None:
            return top
        error = error.__cause__ or error.__context__
    return None


def _imported(path: Path) -> Iterator[str]:
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
