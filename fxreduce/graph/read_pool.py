"""The reader of mean poolings: modules, torch functions and ATen overloads."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import register_operator
from fxreduce.graph.nodes import (
    argument,
    channels_of,
    is_whole,
    module_input,
    module_of,
    per_axis,
)
from fxreduce.graph.pooling import window_options
from fxreduce.operators.affine import Operator, Refusal
from fxreduce.operators.pooling import mean_pool

_MODULES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_OPERATIONS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")


def _mean_pool(graph_module: GraphModule, node: Node) -> tuple[Operator, Node] | Refusal | None:
    found, module = window_options(graph_module, node), module_of(graph_module, node)
    if found is None:
        return None
    rank, options = found
    given = argument(node, 0, "input") if module is None else module_input(node)
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


register_operator(_mean_pool, modules=_MODULES, operations=_OPERATIONS, weightless=True)
