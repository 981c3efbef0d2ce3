"""Writing results: checked before the long work, complete or not there at all afterwards."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor
from torch.fx import GraphModule

import fxreduce
from fxreduce.cli.errors import UsageError
from fxreduce.errors import UnsupportedError

# What each suffix is, and how a program reads such a file.
FORMATS = {
    ".json": ("the plan", "fxreduce.Plan.load({path!r}).apply(model)"),
    ".safetensors": ("the reduced model", "fxreduce.load({path!r}, model)"),
    ".pt2": ("a torch.export program for any batch size", "torch.export.load({path!r}).module()"),
    ".onnx": ("an ONNX model for any batch size", "onnxruntime.InferenceSession({path!r})"),
}


def check_destination(path: Path) -> None:
    """Refuse a destination that cannot be written, before any long work is done for it.

    Raises:
        UnsupportedError: The suffix is none of those that fxreduce writes.
        UsageError: The folder does not exist or cannot be written to, or the path is a folder.
    """
    if path.suffix not in FORMATS:
        known = "; ".join(f"{suffix}: {what}" for suffix, (what, _) in FORMATS.items())
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


def save(path: Path, plan: fxreduce.Plan, reduced: GraphModule, images: Tensor) -> str:
    """Write the plan or the reduced model, as the suffix says; returns a sentence about the file.

    Args:
        path: A destination that `check_destination` has accepted.
        plan: What `reduced` was made by.
        reduced: The reduced model.
        images: `[N, C, H, W]`, to export the model with.

    Raises:
        UnsupportedError: The format cannot express the model, or a package is missing.
        EquivalenceError: The model, read back from the file, computes something else.
        PlanError: The file cannot be written.
    """
    what, how = FORMATS[path.suffix]
    if path.suffix == ".json":
        plan.save(path)
        checked = ""
    else:
        fxreduce.save(reduced, path, example_inputs=images[:1])
        checked = f" ({path.stat().st_size:,} bytes), read it back and compared"
    return f"wrote {what} to {path}{checked}: {how.format(path=str(path))}"
