"""The functions that a saved graph may call, by name: arithmetic, and nothing that opens files.

A name in a file is looked up here and never imported, so that a file cannot run what it likes.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.overrides import get_overridable_functions

from fxreduce.errors import UnsupportedError

Function = Callable[..., Any]
_OPERATORS = "torch.ops."
_FACTORIES = ("_assert", "arange", "empty", "eye", "full", "linspace", "ones", "tensor", "zeros")
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_BUILTINS = ("abs", "bool", "float", "getattr", "int", "len", "max", "min", "pow", "round", "sum")
# What calls whatever it is given, opens files, or hands memory to something else than torch.
_FORBIDDEN = frozenset(
    (
        *("call", "attrgetter", "itemgetter", "methodcaller", "apply_", "map_", "map2_"),
        *("register_hook", "register_post_accumulate_grad_hook"),
        *("from_file", "save", "storage", "untyped_storage", "share_memory_", "numpy"),
    )
)


def name_of(function: Function) -> str:
    """The name under which a saved graph has the function."""
    if isinstance(function, OpOverload):
        return f"{_OPERATORS}{function}"
    found = _names().get(id(function))
    return found or f"{function.__module__}.{getattr(function, '__qualname__', function)}"


def function_of(name: str, library: Mapping[str, Function]) -> Function:
    """The function of a name.

    Args:
        name: what `name_of` gave.
        library: further functions, those that the user's own model calls.

    Raises:
        UnsupportedError: a saved graph may not call it.
    """
    function = _operator(name) if name.startswith(_OPERATORS) else _functions().get(name)
    function = function or library.get(name)
    if function is None:
        raise UnsupportedError(
            f"a saved graph calls torch's arithmetic, and what the model calls that it was made "
            f"from; {name} is neither. Pass that model: fxreduce.load(path, model)"
        )
    return function


def functions_called(graph_module: GraphModule) -> dict[str, Function]:
    """The functions that a graph calls, by name."""
    targets = (
        cast(Function, node.target)
        for node in graph_module.graph.nodes
        if node.op == "call_function"
    )
    return {name_of(target): target for target in targets}


@cache
def methods() -> frozenset[str]:
    """The names of the methods of a tensor that a saved graph may call."""
    names = {getattr(each, "__name__", "") for each in get_overridable_functions()[Tensor]}
    public = {name for name in names if not name.startswith("__")}
    return frozenset(public.union(_METHODS)) - _FORBIDDEN


def _operator(name: str) -> Function | None:
    """The ATen operator of a name, as in torch.ops.aten.relu.default."""
    parts = name.removeprefix(_OPERATORS).split(".")
    if len(parts) != 3 or parts[0] not in ("aten", "prims") or parts[1] in _FORBIDDEN:
        return None
    found: Any = torch.ops
    for part in parts:
        found = getattr(found, part, None)
    return found if isinstance(found, OpOverload) else None


@cache
def _functions() -> dict[str, Function]:
    return {name: each for name, each in _named() if name.rpartition(".")[2] not in _FORBIDDEN}


@cache
def _names() -> dict[int, str]:
    return {id(each): name for name, each in reversed(_functions().items())}


def _named() -> Iterator[tuple[str, Function]]:
    for space, functions in get_overridable_functions().items():
        if space is not Tensor and getattr(space, "__name__", "").startswith("torch"):
            for each in functions:
                yield f"{space.__name__}.{each.__name__}", each
    for space, names in (
        (torch, _FACTORIES),
        (builtins, _BUILTINS),
        (operator, operator.__all__),
        (math, [name for name in vars(math) if not name.startswith("_")]),
    ):
        for name in names:
            found: Any = getattr(space, name, None)
            if callable(found):
                yield f"{space.__name__}.{name}", found
