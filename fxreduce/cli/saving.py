"""Writing results: checked before the long work, complete or not there at all afterwards."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

import fxreduce
from fxreduce.cli.errors import UsageError
from fxreduce.errors import EquivalenceError, UnsupportedError
from fxreduce.files import write_atomically

_SUFFIXES = (".pt2", ".json")


def check_destination(path: Path) -> None:
    """Refuse a destination that cannot be written, before any long work is done for it.

    Raises:
        UnsupportedError: The suffix is none of those that fxreduce writes.
        UsageError: The folder does not exist or cannot be written to, or the path is a folder.
    """
    if path.suffix not in _SUFFIXES:
        raise UnsupportedError(
            f"--out {path}: the suffix says what to write: .pt2 for the reduced model "
            "(torch.export), .json for the plan"
        )
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
        UnsupportedError: torch.export cannot express the model for any batch size.
        EquivalenceError: The model, read back from the file, computes something else.
        FxReduceError: The file cannot be written.
    """
    if path.suffix == ".json":
        plan.save(path)
        return f"wrote the plan to {path}: fxreduce.Plan.load({str(path)!r}).apply(model)"
    program = _export(reduced, images)
    try:
        write_atomically(path, lambda temporary: _write(program, reduced, temporary, images))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error
    return (
        f"wrote the reduced model to {path} ({path.stat().st_size:,} bytes), read it back and "
        f"compared: torch.export.load({str(path)!r}).module()"
    )


def _export(module: GraphModule, images: Tensor) -> torch.export.ExportedProgram:
    # torch.export takes batch sizes 0 and 1 for constants: the example has two images.
    example = images[:1].repeat(2, 1, 1, 1)
    dynamic = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(module, (example,), dynamic_shapes=dynamic)
    except Exception as error:  # torch.export raises many kinds, each of them its verdict
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedError(
            f"torch.export cannot express the reduced model for any batch size: {reason}. "
            "Write the plan instead (--out FILE.json) and apply it from Python"
        ) from error


def _write(
    program: torch.export.ExportedProgram, module: GraphModule, path: Path, images: Tensor
) -> None:
    torch.export.save(program, path)
    read_back = torch.export.load(path)
    for batch in (images[:1], images[:1].repeat(3, 1, 1, 1)):
        if not (found := fxreduce.verify(module, read_back, batch)).ok:
            raise EquivalenceError(
                f"the exported model, read back, must compute what the reduced model does; it is "
                f"off by {found.max_rel:.3g} relative, {found.tolerance:.3g} is allowed. Write the "
                "plan instead (--out FILE.json) and report the model"
            )
