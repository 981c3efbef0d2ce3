"""Writing results: checked before the long work, complete or not there at all afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from torch.fx import GraphModule

import fxreduce
from fxreduce.cli.errors import UsageError
from fxreduce.data.dataset import Inputs
from fxreduce.errors import UnsupportedError

# What each suffix is, and how a program reads such a file.
FORMATS = {
    ".json": ("the plan", "fxreduce.Plan.load({path!r}).apply(model)"),
    ".safetensors": ("the reduced model", "fxreduce.load({path!r}, model)"),
    ".pt2": ("a torch.export program for any batch size", "torch.export.load({path!r}).module()"),
    ".onnx": ("an ONNX model for any batch size", "onnxruntime.InferenceSession({path!r})"),
}
PLAN = ".json"
# A plan has no weights that were trained since, a model has.
MODELS = tuple(suffix for suffix in FORMATS if suffix != PLAN)


def check_destination(path: Path, suffixes: Collection[str] = tuple(FORMATS)) -> None:
    """Refuse a destination that cannot be written, before any long work is done for it.

    Args:
        path: The destination.
        suffixes: Of `FORMATS`, those that can be written.

    Raises:
        UnsupportedError: The suffix is none of those.
        UsageError: The folder does not exist or cannot be written to, or the path is a folder.
    """
    if path.suffix not in suffixes:
        known = "; ".join(f"{suffix}: {FORMATS[suffix][0]}" for suffix in suffixes)
        raise UnsupportedError(f"--out {path}: the suffix says what to write. {known}")
    require_writable("--out", path)


def require_writable(option: str, path: Path) -> None:
    """Raise UsageError where the path that the option names cannot be written as a file."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")
    try:
        # Permission bits do not tell for a superuser or a read-only file system; writing does.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot write to {path.parent}: {error}") from error


def save(path: Path, plan: fxreduce.Plan, reduced: GraphModule, sample: Inputs) -> str:
    """Write the plan or the reduced model, as the suffix says; returns a sentence about the file.

    Args:
        path: A destination that `check_destination` has accepted.
        plan: What `reduced` was made by.
        reduced: The reduced model.
        sample: One sample, to export the model with.

    Raises:
        UnsupportedError: The format cannot express the model, or a package is missing.
        EquivalenceError: The model, read back from the file, computes something else.
        PlanError: The file cannot be written.
    """
    if path.suffix != PLAN:
        return save_model(path, reduced, sample)
    plan.save(path)
    return _written(path)


def save_model(path: Path, reduced: GraphModule, example: Inputs) -> str:
    """Write the reduced model, as the suffix says; returns a sentence about the file.

    Args:
        path: A destination that `check_destination` has accepted, of one of `MODELS`.
        reduced: The reduced model.
        example: One sample, to export the model with.

    Raises:
        UnsupportedError, EquivalenceError, PlanError: See `save`.
    """
    fxreduce.save(reduced, path, example_inputs=example)
    return _written(path, f" ({path.stat().st_size:,} bytes), read it back and compared")


def _written(path: Path, checked: str = "") -> str:
    what, how = FORMATS[path.suffix]
    return f"wrote {what} to {path}{checked}: {how.format(path=str(path))}"
