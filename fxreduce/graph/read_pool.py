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
from fxreduce.graph.pooling import MeanPooling, read_mean_pooling, window_options
from fxreduce.operators.affine import Operator, Refusal
from fxreduce.operators.pooling import mean_pool

_GUARDS = "_guards_fn"  # by which torch.export's modules refuse inputs of other sizes
_ADAPTIVE_MODULES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_ADAPTIVE = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
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


def _adaptive_pool(graph_module: GraphModule, node: Node) -> tuple[Operator, Node] | Refusal | None:
    """Windows of one length, where the graph takes inputs of one size alone and they divide it.

    Elsewhere the windows depend on the size of the input; one over whole axes is a mean, which
    other passes know as such.
    """
    found = read_mean_pooling(graph_module, node)
    if not isinstance(found, MeanPooling) or found.is_global:
        return None
    lengths = _fixed_lengths(graph_module, found.input, len(found.axes))
    channels = channels_of(found.input, len(found.axes))
    if lengths is None or channels is None:
        return None
    targets = [n if size is None else size for n, size in zip(lengths, found.size, strict=True)]
    if any(n % target for n, target in zip(lengths, targets, strict=True)):
        return Refusal(f"its windows differ in length: {lengths} positions become {targets}")
    kernel = tuple(n // target for n, target in zip(lengths, targets, strict=True))
    return mean_pool(channels, kernel, kernel), found.input


def _fixed_lengths(graph_module: GraphModule, node: Node, rank: int) -> list[int] | None:
    """The lengths of the last axes, where the graph refuses inputs that would give others."""
    shape = getattr(node.meta.get("val"), "shape", None)
    if shape is None or not hasattr(graph_module, _GUARDS):
        return None
    lengths = list(shape[-rank:])
    return lengths if all(type(length) is int for length in lengths) else None


register_operator(_adaptive_pool, modules=_ADAPTIVE_MODULES, operations=_ADAPTIVE, weightless=True)
register_operator(_mean_pool, modules=_MODULES, operations=_OPERATIONS, weightless=True)
