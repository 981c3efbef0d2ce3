"""Small readings of a node that are the same in every dialect."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

SHAPE = "fxreduce.shape"  # node.meta key: the shape of the node's value, where it is a tensor
CAPTURED = ("tensor_meta", "val")  # node.meta keys under which torch's captures describe the value


def label(node: Node) -> str:
    """How reports name a node: by its module's path, or by its own name where it calls none."""
    return str(node.target) if node.op == "call_module" else node.name


def operation(node: Node) -> str | None:
    """The name of the torch function, method or ATen operator that the node calls.

    `torch.relu`, `F.relu`, `Tensor.relu` and `aten.relu.default` are all `relu`; their in-place
    forms end in an underscore. Functions from outside torch have no name here.
    """
    target = node.target
    if node.op == "call_method":
        name = str(target)  # a tensor's own `&=`, on what is traced, is called as __iand__
        return _OPERATORS.get(name.strip("_"), name) if name.startswith("__") else name
    if node.op != "call_function":
        return None
    if isinstance(target, OpOverload):
        namespace, name = target._schema.name.split("::")
        return name if namespace == "aten" else None
    module = getattr(target, "__module__", None) or ""
    name = getattr(target, "__name__", "")
    if target is getattr(operator, name, None):
        return _OPERATORS.get(name, name)
    if module.split(".")[0] == "torch" or target is getattr(torch, name, None):
        return name
    return name if target is getattr(nn.functional, name, None) else None


# Python's operators by torch's names. The underscores of Python's own and_ and or_ mean nothing.
_OPERATORS = {
    "truediv": "div",
    "and_": "bitwise_and",
    "or_": "bitwise_or",
    "is_": "is",
    "not_": "not",
    "iadd": "add_",
    "isub": "sub_",
    "imul": "mul_",
    "itruediv": "div_",
    "ifloordiv": "floor_divide_",
    "imod": "remainder_",
    "ipow": "pow_",
    "iand": "bitwise_and_",
    "ior": "bitwise_or_",
    "ixor": "bitwise_xor_",
}


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """The node's argument at a position, or of a name, or the default."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def module_of(graph_module: GraphModule, node: Node) -> nn.Module | None:
    """The module that a `call_module` node calls."""
    if node.op != "call_module":
        return None
    return graph_module.get_submodule(str(node.target))


def is_guards(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node is torch.export's check that the inputs have sizes that the graph takes."""
    return type(module_of(graph_module, node)).__name__ == "GuardsFn"


def module_input(node: Node) -> Node | None:
    """The tensor that a `call_module` node is called with, where it is the only argument."""
    given = argument(node, 0, "input")
    alone = len(node.args) + len(node.kwargs) == 1
    return given if isinstance(given, Node) and alone else None


def tensor_of(graph_module: GraphModule, value: Any) -> Tensor | None:
    """The parameter, buffer or constant behind a `get_attr` node."""
    if not isinstance(value, Node) or value.op != "get_attr":
        return None
    found = attribute(graph_module, str(value.target))
    return found if isinstance(found, Tensor) else None


def attribute(module: nn.Module, path: str) -> Any:
    """What stands at a path of names with dots in between."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def are_constant(graph_module: GraphModule, *values: Any) -> bool:
    """Whether each value is None or a parameter, buffer or constant of the graph."""
    return all(value is None or tensor_of(graph_module, value) is not None for value in values)


def implements(module: nn.Module, base: type[nn.Module], methods: Sequence[str]) -> bool:
    """Whether `module` computes what `base` does: none of `methods` is overridden.

    A parametrised module passes: torch gives it a class of its own that inherits them.
    """
    return isinstance(module, base) and all(
        getattr(type(module), method) is getattr(base, method) and method not in vars(module)
        for method in methods
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs hooks that a merged operator would not run."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def module_path(node: Node) -> tuple[str, Any]:
    """The path and the class (or its name) of the innermost module that the node was traced in."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "", None
    path, kind = list(stack.values())[-1]
    return _plain(str(path).split("@")[0]), kind


def _plain(path: str) -> str:
    """The path without the expressions in which torch.export of 2.6 writes it for containers.

    There "0.act" is `getattr(L['fn'], '0').act`, and the container itself `L['fn']`.
    """
    while path != (path := re.sub(r"getattr\((.+), '(\w+)'\)", r"\1.\2", path)):
        pass
    return re.sub(r"^L\['\w+'\]\.?", "", path)


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of the node's value, where capture or a calibration batch has told it."""
    if not isinstance(node, Node):
        return None
    known = next((node.meta[key] for key in CAPTURED if key in node.meta), None)
    shape = node.meta.get(SHAPE, getattr(known, "shape", None))
    return None if shape is None else tuple(shape)


# What of a tensor is no tensor: its attributes, and the calls that tell its size.
_FACTS = {"shape", "dtype", "device", "ndim", "layout", "requires_grad"}
_SIZES = {"size", "dim", "numel", "sym_size", "sym_numel"}


def reads_facts(node: Node) -> bool:
    """Whether the node reads no value of its input, only its shape, dtype or the like."""
    if node.target is getattr:
        return node.args[1] in _FACTS
    return operation(node) in _SIZES


def is_size(node: Node) -> bool:
    """Whether the node's value is a number that Python's operators compute from sizes alone."""
    if reads_facts(node):
        return True
    home = getattr(node.target, "__module__", None)
    if node.op != "call_function" or home not in ("_operator", "math"):
        return False
    return bool(node.all_input_nodes) and all(map(is_size, node.all_input_nodes))


def channels_of(node: Any, rank: int) -> int | None:
    """The size of axis -(rank + 1) of an image (N, C, *spatial) or (C, *spatial), where known."""
    shape = shape_of(node)
    if shape is None or len(shape) - rank not in (1, 2):
        return None
    channels: Any = shape[-rank - 1]
    return channels if isinstance(channels, int) else None


def is_whole(*values: Any) -> bool:
    """Whether each value is an integer or a sequence of integers, known without running."""
    return all(
        isinstance(each, int)
        for value in values
        for each in (value if isinstance(value, (tuple, list)) else (value,))
    )


def per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """An option of a convolution or pooling with one entry for each spatial axis."""
    if isinstance(value, int):
        return (value,) * rank
    values = tuple(value)
    return values * rank if len(values) == 1 else values


def is_inplace(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node's value is the very tensor that it overwrites."""
    module = module_of(graph_module, node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = operation(node)
    if name is not None and name.endswith("_") and not name.endswith("__"):
        return True
    return _flag_inplace(node) or node.kwargs.get("out") is not None


def write_target(graph_module: GraphModule, node: Node) -> Node | None:
    """The value that the node overwrites, or None where it overwrites none."""
    target = None
    if node.target in (operator.setitem, "__setitem__"):
        target = node.args[0]
    elif is_inplace(graph_module, node):
        target = node.kwargs.get("out", argument(node, 0, "input", node.kwargs.get("self")))
    return target if isinstance(target, Node) else None


def _flag_inplace(node: Node) -> bool:
    """The `inplace` argument of torch.nn.functional, given by name or, as it is last, by place."""
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    code = getattr(node.target, "__code__", None)
    if node.op != "call_function" or code is None:
        return False
    names = code.co_varnames[: code.co_argcount]
    if "inplace" not in names:
        return False
    place = names.index("inplace")
    return place < len(node.args) and bool(node.args[place])
