"""Fitted weights in a safetensors file, beside the plan that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fxreduce.errors import PlanError, first_line
from fxreduce.extras import required
from fxreduce.files import write_atomically

SUFFIX = ".safetensors"


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights, atomically.

    Raises:
        UnsupportedError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    library = _library()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content: bytes = library.save(tensors)
    write_atomically(path, lambda temporary: _write(temporary, content))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights.

    Raises:
        UnsupportedError: safetensors is not installed.
        PlanError: there is no such file, or it is damaged.
    """
    library = _library()
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


def _library() -> Any:
    return required("safetensors.torch", "a plan with fitted weights", "export")
