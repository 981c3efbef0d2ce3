"""Which axis of a value holds the channels, and how many axes lie to the right of axis 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import argument, module_of, operation, shape_of
from fxreduce.graph.rectifiers import read_rectifier

# Conv2d, conv2d, MaxPool3d, adaptive_avg_pool2d, BatchNorm2d; BatchNorm1d takes two ranks.
_SPATIAL = re.compile(r"(conv|pool|pad|batchnorm(?!1)|instancenorm).*?([123])d", re.IGNORECASE)
_CHANNELS_LAST = {"linear", "Linear", "layer_norm", "LayerNorm"}
_TRANSPARENT = re.compile(
    r"(add|sub|mul|div)_?|(feature_)?(alpha_)?dropout.*|identity|batch_?norm.*|cat|concat|contiguous",
    re.IGNORECASE,
)


def trailing_axes(graph_module: GraphModule, node: Node) -> int | None:
    """Axes right of axis 1 in the node's value: 2 for (N, C, H, W); None where nothing tells."""
    for value in _producers(graph_module, node):
        shape = shape_of(value)
        if shape is not None:
            return len(shape) - 2
        name = _name(graph_module, value)
        if found := _SPATIAL.search(name):
            return int(found[2])
        if flattens(graph_module, value):
            return 0
    return None


def channel_axis(graph_module: GraphModule, node: Node, dimensions: int) -> int:
    """The channel axis of the node's value, counted from the right.

    It is axis 1 behind or before a convolution, pooling or batch-norm and the last axis behind or
    before a Linear or a LayerNorm, whichever operator is nearest. Where none is found, values of
    up to three dimensions are taken as tokens, others as (N, C, ...).
    """
    second = 1 - dimensions if dimensions > 1 else -1
    for walk in (_producers(graph_module, node), _consumers(graph_module, node)):
        for value in walk:
            name = _name(graph_module, value)
            if _SPATIAL.search(name) or "batch" in name.lower():
                return second
            if name in _CHANNELS_LAST:
                return -1
    return -1 if dimensions <= 3 else second


def _producers(graph_module: GraphModule, node: Node) -> Iterator[Node]:
    """The node, then what it is computed from, as long as the axes stay what they are."""
    return _walk(graph_module, [node], lambda value: value.all_input_nodes)


def _consumers(graph_module: GraphModule, node: Node) -> Iterator[Node]:
    """What is computed from the node, as long as the axes stay what they are."""
    return _walk(graph_module, list(node.users), lambda value: list(value.users))


def _walk(
    graph_module: GraphModule, waiting: list[Node], neighbours: Callable[[Node], list[Node]]
) -> Iterator[Node]:
    """The waiting nodes and, the nearest first, those beyond the ones that keep the axes."""
    seen: set[Node] = set()
    while waiting:
        value = waiting.pop(0)
        if value in seen:
            continue
        seen.add(value)
        yield value
        if _keeps_axes(graph_module, value):
            waiting.extend(neighbours(value))


def _keeps_axes(graph_module: GraphModule, node: Node) -> bool:
    if read_rectifier(graph_module, node) is not None:
        return True
    name = _name(graph_module, node)
    return bool(_TRANSPARENT.fullmatch(name)) or name in _CHANNELS_LAST


def _name(graph_module: GraphModule, node: Node) -> str:
    module = module_of(graph_module, node)
    if module is not None:
        return next(
            (
                cls.__name__
                for cls in type(module).__mro__
                if cls.__module__.startswith("torch.nn") and not cls.__name__.startswith("Param")
            ),
            type(module).__name__,
        )
    return operation(node) or ""


def flattens(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node flattens all axes from axis 1 on into one."""
    name = _name(graph_module, node)
    if name == "Flatten":
        module = module_of(graph_module, node)
        return (getattr(module, "start_dim", 0), getattr(module, "end_dim", 0)) == (1, -1)
    if name != "flatten":
        return False
    return (argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)) == (1, -1)
