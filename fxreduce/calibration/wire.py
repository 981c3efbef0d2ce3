"""Values and tensors as bytes, as ranks send them to each other; nothing is ever unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from ctypes import string_at
from typing import Any

import torch
from torch import Tensor

# Of each tensor its name, dtype and shape.
Layout = list[tuple[str, str, list[int]]]


def packed(value: Any) -> Tensor:
    """A value that JSON can express, as uint8 [bytes]."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def unpacked(data: Tensor) -> Any:
    """The value that `packed` was given; tuples have become lists."""
    return json.loads(content(data))


def content(data: Tensor) -> bytes:
    """The bytes of a tensor's memory."""
    whole = data.detach().cpu().contiguous()
    return string_at(whole.data_ptr(), whole.numel() * whole.element_size())


def nothing() -> Tensor:
    """No bytes."""
    return torch.empty(0, dtype=torch.uint8)


def memory(tensor: Tensor) -> Tensor:
    """The memory of a tensor, uint8 [bytes], on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """How `joined` lays the tensors out."""
    return [
        (name, str(each.dtype).removeprefix("torch."), list(each.shape))
        for name, each in tensors.items()
    ]


def joined(tensors: Mapping[str, Tensor]) -> Tensor:
    """The memory of tensors, one after the other."""
    return torch.cat([nothing(), *map(memory, tensors.values())])


def split(data: Tensor, laid_out: Iterable[tuple[str, str, list[int]]]) -> dict[str, Tensor]:
    """The tensors that `joined` was given, bit for bit, on the CPU."""
    tensors, begin = {}, 0
    for name, kind, shape in laid_out:
        dtype: torch.dtype = getattr(torch, kind)
        end = begin + math.prod(shape) * dtype.itemsize
        # A copy of its own is aligned as its dtype asks for.
        tensors[name] = data[begin:end].clone().view(dtype).view(shape)
        begin = end
    return tensors
