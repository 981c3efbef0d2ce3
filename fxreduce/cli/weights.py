"""Reading a file of trained weights into a module, without running any code from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxreduce.cli.errors import UsageError
from fxreduce.errors import UnsupportedError, missing_extra

_SUFFIXES = (".safetensors", ".pth", ".pt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
_SHOWN = 3


def load_weights(module: nn.Module, path: Path, *, other_classes: bool = False) -> list[str]:
    """Load the weights in `path` into `module`, in place; every name and shape must fit.

    Args:
        module: Gets the weights.
        path: Of the file.
        other_classes: Whether tensors may differ in their first dimension, as those of a
            classifier for other classes do; they are left as they are.

    Returns:
        The names that were left as they are.

    Raises:
        UsageError: There is no such file, it holds more or other things than tensors, or they do
            not fit the module: the message names the first few entries that are missing, left
            over or of other shapes.
        UnsupportedError: The suffix is unknown.
    """
    state = _read(path)
    expected, left = module.state_dict(), []
    if other_classes:
        left = [name for name, value in state.items() if _has_other_rows(expected.get(name), value)]
        state = {name: expected[name] if name in left else state[name] for name in state}
    misfits = _misfits(expected, state)
    if misfits:
        raise UsageError(
            f"the weights in {path} do not fit {type(module).__name__}: {'; '.join(misfits)}"
        )
    module.load_state_dict(state, strict=False)
    return left


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in _SUFFIXES:
        raise UnsupportedError(
            f"weights are read from {', '.join(_SUFFIXES)} files; got {path.name!r}"
        )
    if not path.is_file():
        raise UsageError(f"there is no weights file {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(
            f"{path} must hold a state dict, {{name: tensor}}: save model.state_dict()"
        )
    if content and all(key.startswith("module.") for key in content):  # DataParallel's prefix
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise missing_extra("safetensors", str(path), "export") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is not a safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what broken or refused pickles raise is anything
        raise UsageError(
            f"{path} is not a torch.save of tensors alone. Save model.state_dict() and not the "
            "model, whose loading would run code from the file"
        ) from error


def _misfits(expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    # The batch counter of batch-norm is absent from old files and plays no part in eval mode.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {list(value.shape)} and should be {list(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    found = (("missing", missing), ("not in the model", surplus), ("other shapes", shapes))
    return [f"{len(names)} {what} ({_first(names)})" for what, names in found if names]


def _has_other_rows(expected: Tensor | None, value: Tensor) -> bool:
    if expected is None or expected.dim() != value.dim() or not value.dim():
        return False
    return expected.shape != value.shape and expected.shape[1:] == value.shape[1:]


def _first(names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
