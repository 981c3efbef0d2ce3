"""The reader of zero paddings: modules, torch functions and ATen overloads."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import register_operator
from fxreduce.graph.nodes import (
    argument,
    channels_of,
    implements,
    is_whole,
    module_input,
    module_of,
    operation,
    shape_of,
)
from fxreduce.operators.affine import Operator, Refusal
from fxreduce.operators.pad import zero_pad

_CONSTANT = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
UNKNOWN = "nothing tells how many channels it pads; capture the model with example inputs"


def _zero_pad(graph_module: GraphModule, node: Node) -> tuple[Operator, Node] | Refusal | None:
    module = module_of(graph_module, node)
    rank: int | None = None
    value: Any
    if module is None:
        given, ends = argument(node, 0, "input"), argument(node, 1, "pad")
        named = operation(node) == "pad"
        mode = argument(node, 2, "mode", "constant") if named else "constant"
        value = argument(node, 2 + named, "value")
    else:
        rank = next(i for i, base in enumerate(_CONSTANT, 1) if isinstance(module, base))
        if not implements(module, _CONSTANT[rank - 1], ("forward",)):
            return None
        given, ends, mode = module_input(node), module.padding, "constant"
        value = module.value
    if mode != "constant" or value not in (None, 0):
        return None
    if not isinstance(given, Node) or not isinstance(ends, (tuple, list)) or not is_whole(ends):
        return None
    if rank is None:
        shape = shape_of(given)
        if shape is None:
            return Refusal(UNKNOWN)
        rank = len(shape) - 2
    sides = tuple(zip(ends[-2::-2], ends[-1::-2], strict=True))
    if not 0 < len(sides) <= rank:
        return None  # it pads channels, as of tokens (N, L, C)
    if min(ends) < 0:
        return Refusal(f"it crops: by a padding of {tuple(ends)}")
    channels = channels_of(given, rank)
    if channels is None:
        return Refusal(UNKNOWN)
    return zero_pad(channels, ((0, 0),) * (rank - len(sides)) + sides), given


register_operator(
    _zero_pad, modules=_CONSTANT, operations=("pad", "constant_pad_nd"), weightless=True
)
