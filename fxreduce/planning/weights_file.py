"""Fitted weights in a safetensors file, beside the plan that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from fxreduce.errors import PlanError, first_line
from fxreduce.files import write_atomically

SUFFIX = ".safetensors"


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights, atomically.

    Raises:
        PlanError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    library = _library(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content: bytes = library.save(tensors)
    write_atomically(path, lambda temporary: _write(temporary, content))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights.

    Raises:
        PlanError: safetensors is not installed, or there is no such file.
    """
    library = _library(path)
    try:
        tensors: dict[str, Tensor] = library.load_file(path)
    except Exception as error:  # safetensors has an error of its own
        raise PlanError(
            f"the plan's fitted weights cannot be read from {path}: {first_line(error)}. The file "
            "belongs beside the plan; keep the two together"
        ) from error
    return tensors


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _library(path: Path) -> Any:
    try:
        return import_module("safetensors.torch")
    except ImportError:
        raise PlanError(
            f"{path} needs safetensors, which is not installed: pip install fxreduce[export]"
        ) from None
