"""The state of the global random generators, so that a resumed training draws the same numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_CUDA = "cuda:"


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch (tensors, by device) and of Python and NumPy (as JSON has them)."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"{_CUDA}{number}": state for number, state in enumerate(states)}
    version, words, gauss = random.getstate()
    content: dict[str, Any] = {"python": [version, list(words), gauss]}
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        content["numpy"] = [name, keys.tolist(), *rest]
    return tensors, content


def set_random_state(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Set the generators to a state; devices and libraries that are not there are left out."""
    torch.set_rng_state(tensors["cpu"])
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        if (state := tensors.get(f"{_CUDA}{number}")) is not None:
            torch.cuda.set_rng_state(state, number)
    version, words, gauss = content["python"]
    random.setstate((version, tuple(words), gauss))
    if "numpy" in content:
        import numpy

        numpy.random.set_state(tuple(content["numpy"]))


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, Python and, where it is loaded, NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
