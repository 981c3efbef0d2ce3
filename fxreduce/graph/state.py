"""The buffers of a module, as they were before it ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Saved:
    owner: nn.Module
    name: str
    path: str
    buffer: Tensor
    version: int
    value: Tensor

    def is_changed(self) -> bool:
        now = self.owner._buffers.get(self.name)
        return now is not self.buffer or _version(self.buffer) != self.version

    def restore(self) -> None:
        self.owner._buffers[self.name] = self.buffer
        self.buffer.copy_(self.value)


@contextmanager
def kept_state(module: nn.Module) -> Iterator[list[str]]:
    """Whatever runs inside leaves the module's buffers as they were.

    Yields:
        A list that holds, at the end, the names of the buffers that were written or replaced.
    """
    saved = [
        _Saved(owner, name, f"{path}.{name}".lstrip("."), buffer, _version(buffer), buffer.clone())
        for path, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    written: list[str] = []
    try:
        yield written
    finally:
        with torch.no_grad():
            for each in saved:
                if each.is_changed():
                    written.append(each.path)
                    each.restore()


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
