"""The reader of mean poolings: modules, torch functions and ATen overloads."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import module_input, register_operator
from fxreduce.graph.nodes import (
    argument,
    channels_of,
    implements,
    is_whole,
    module_of,
    operation,
    per_axis,
)
from fxreduce.operators.affine import Operator, Refusal
from fxreduce.operators.pool import mean_pool

_MODULES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_OPERATIONS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
_OPTIONS: dict[str, Any] = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}


def _mean_pool(graph_module: GraphModule, node: Node) -> tuple[Operator, Node] | Refusal | None:
    module = module_of(graph_module, node)
    if module is None:
        given, rank = argument(node, 0, "input"), _OPERATIONS.index(operation(node) or "") + 1
        options = {
            name: argument(node, place, name, default)
            for place, (name, default) in enumerate(_OPTIONS.items(), 1)
        }
    else:
        given = module_input(node)
        rank = next(i for i, base in enumerate(_MODULES, 1) if isinstance(module, base))
        if not implements(module, _MODULES[rank - 1], ("forward",)):
            return None
        options = {name: getattr(module, name, default) for name, default in _OPTIONS.items()}
    kernel = options["kernel_size"]
    stride = kernel if options["stride"] in (None, [], ()) else options["stride"]
    padding, divisor = options["padding"], options["divisor_override"]
    if not isinstance(given, Node) or not is_whole(kernel, stride, padding):
        return None
    if options["ceil_mode"]:
        return Refusal("its last window may reach beyond the padding: ceil_mode is set")
    padding = per_axis(padding, rank)
    if any(padding) and not options["count_include_pad"] and divisor is None:
        return Refusal("its windows leave out the padding, and at the border divide by less")
    channels = channels_of(given, rank)
    if channels is None:
        return Refusal(
            "nothing tells how many channels it pools; capture the model with example inputs"
        )
    return mean_pool(
        channels, per_axis(kernel, rank), per_axis(stride, rank), padding, divisor
    ), given


def calls_mean_pool(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node calls a mean pooling of torch, which takes any number of channels."""
    return isinstance(module_of(graph_module, node), _MODULES) or operation(node) in _OPERATIONS


register_operator(_mean_pool, modules=_MODULES, operations=_OPERATIONS, weightless=True)
