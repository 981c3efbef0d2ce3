"""The arguments of a graph's nodes as JSON: numbers, names of nodes, and torch's own constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import torch
from torch.fx import Node

from fxreduce.errors import UnsupportedError

_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


def encode(value: Any) -> Any:
    """The argument as JSON has it.

    Raises:
        UnsupportedError: it is nothing that a saved graph can hold.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else {"float": str(value)}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, _CONSTANTS):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, slice | range):
        parts = [encode(part) for part in (value.start, value.stop, value.step)]
        return {type(value).__name__: parts}
    if value is Ellipsis:
        return {"ellipsis": None}
    if isinstance(value, list):
        return [encode(each) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(each) for each in value]}
    if isinstance(value, Mapping):
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    raise UnsupportedError(f"a saved graph holds numbers, names and tensors; seen: {value!r}")


def decode(content: Any, nodes: Mapping[str, Node]) -> Any:
    """The argument that `encode` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    if isinstance(content, list):
        return [decode(each, nodes) for each in content]
    if not isinstance(content, dict):
        return content
    ((kind, given),) = content.items()
    if kind == "node":
        return nodes[given]
    if kind in ("tuple", "slice", "range"):
        return _SEQUENCES[kind]([decode(each, nodes) for each in given])
    if kind == "dict":
        return {decode(key, nodes): decode(each, nodes) for key, each in given}
    return _PLAIN[kind](given)


def _constant(name: str) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, _CONSTANTS):
        raise ValueError(f"torch has no constant {name!r}")
    return found


_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "slice": lambda parts: slice(*parts),
    "range": lambda parts: range(*parts),
}
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "torch": _constant,
    "device": torch.device,
    "ellipsis": lambda _: Ellipsis,
}
