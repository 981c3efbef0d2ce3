"""Reading a node of any dialect as a mean over windows, or over whole axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.layout import trailing_axes
from fxreduce.graph.nodes import (
    argument,
    has_hooks,
    implements,
    is_inplace,
    module_of,
    operation,
    shape_of,
)
from fxreduce.operators.affine import Operator, Refusal
from fxreduce.operators.pooling import averaging, window_for
from fxreduce.operators.setting import Setting

_AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_FUNCTION = re.compile(r"(adaptive_)?avg_pool([123])d")
# The arguments of torch's average pooling behind the input, as modules name them too.
_WINDOWED = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}


@dataclass(frozen=True)
class MeanPooling:
    """One call that averages.

    Attributes:
        node, input: the call, and what it averages.
        axes: the axes that it averages over, counted from the right.
        keeps_axes: whether these axes stay.
        keeps_constants: whether the mean of a constant is that constant, borders included.
        kernel, stride, padding: of the windows; empty where there are none.
        size: the length that each axis gets whatever it was, None where it stays; empty for
            windows.
    """

    node: Node
    input: Node
    axes: tuple[int, ...]
    keeps_axes: bool = True
    keeps_constants: bool = True
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    size: tuple[int | None, ...] = ()

    @property
    def is_global(self) -> bool:
        """Whether the averaged axes are of length one behind it, for every input."""
        return set(self.size) == {1}

    def on(self, channel: int, setting: Setting) -> tuple[Operator, Setting]:
        """The operator that averages such an input, and the setting in which it does so.

        Args:
            channel: the channel axis, counted from the right.
        """
        shape, channels = setting.shape, setting.shape[channel]
        if self.kernel:
            windows = zip(self.kernel, self.stride, self.padding, strict=True)
            return averaging(channels, list(windows)), setting
        lengths = [shape[axis] for axis in self.axes]
        if self.axes != tuple(range(channel + 1, 0)):
            # Axes that lie anywhere: as one axis behind the channels.
            area = prod(lengths)
            rest = prod(shape) // max(channels * area, 1)
            moved = replace(setting, shape=(rest, channels, area))
            return averaging(channels, [(area, 1, 0)]), moved
        targets = zip(lengths, self.size, strict=True)
        windows_for = [window_for(n, n if target is None else target) for n, target in targets]
        return averaging(channels, windows_for), setting

    def after(self, channel: int, setting: Setting) -> Setting:
        """The setting of what follows the pooling."""
        if self.kernel:
            return setting.after(self.on(channel, setting)[0])
        shape = list(setting.shape)
        for axis, size in zip(self.axes, self.size, strict=True):
            shape[axis] = shape[axis] if size is None else size
        gone = () if self.keeps_axes else self.axes
        kept = [axis for axis in range(-len(shape), 0) if axis not in gone]
        return replace(setting, shape=tuple(shape[axis] for axis in kept))


def window_options(graph_module: GraphModule, node: Node) -> tuple[int, dict[str, Any]] | None:
    """The spatial rank of the windowed mean pooling that the node calls, and torch's options of it.

    None where the node calls something else.
    """
    module = module_of(graph_module, node)
    if module is not None:
        for rank, average in enumerate(_AVERAGE, 1):
            if implements(module, average, ("forward",)):
                return rank, {k: getattr(module, k, default) for k, default in _WINDOWED.items()}
        return None
    found = _FUNCTION.fullmatch(operation(node) or "")
    if found is None or found[1]:
        return None
    options = enumerate(_WINDOWED.items(), 1)
    return int(found[2]), {
        name: argument(node, place, name, default) for place, (name, default) in options
    }


def read_mean_pooling(graph_module: GraphModule, node: Node) -> MeanPooling | Refusal | None:
    """The averaging that the node calls, if any; a refusal where rewrites may not touch it."""
    module = module_of(graph_module, node)
    given = argument(node, 0, "input", node.kwargs.get("self"))
    if not isinstance(given, Node):
        return None
    windowed = window_options(graph_module, node)
    if module is not None:
        read = _windowed(node, given, *windowed) if windowed else _module(module, node, given)
        if read is not None and has_hooks(module):
            return Refusal(f"{node.target} has forward hooks, which would see other values")
        return read
    name = operation(node) or ""
    if is_inplace(graph_module, node) or "dtype" in node.kwargs:
        return None
    if name == "mean":
        return _mean(graph_module, node, given)
    if windowed:
        return _windowed(node, given, *windowed)
    found = _FUNCTION.fullmatch(name)
    if found is None:
        return None
    return _adaptive(node, given, int(found[2]), argument(node, 1, "output_size"))


def _module(module: nn.Module, node: Node, given: Node) -> MeanPooling | None:
    for rank, adaptive in enumerate(_ADAPTIVE, 1):
        if implements(module, adaptive, ("forward",)):
            return _adaptive(node, given, rank, module.output_size)
    return None


def _windowed(node: Node, given: Node, rank: int, values: dict[str, Any]) -> MeanPooling | None:
    kernel = _sizes(values["kernel_size"], rank)
    # Torch takes the kernel's own size where no stride is given, or an empty one.
    stride = _sizes(values["stride"] or values["kernel_size"], rank)
    padding = _sizes(values["padding"], rank)
    if kernel is None or stride is None or padding is None:
        return None
    # Windows that stick out at the end in ceil mode are averaged over what they hold.
    whole = values["divisor_override"] is None and (
        not any(padding) or not values["count_include_pad"]
    )
    axes = tuple(range(-rank, 0))
    return MeanPooling(
        node, given, axes, keeps_constants=whole, kernel=kernel, stride=stride, padding=padding
    )


def _adaptive(node: Node, given: Node, rank: int, size: Any) -> MeanPooling | None:
    each = (size,) * rank if isinstance(size, int) or size is None else tuple(size)
    each = each * rank if len(each) == 1 else each
    if not all(one is None or isinstance(one, int) for one in each):
        return None
    return MeanPooling(node, given, tuple(range(-rank, 0)), size=each)


def _mean(graph_module: GraphModule, node: Node, given: Node) -> MeanPooling | Refusal | None:
    axes = argument(node, 1, "dim", node.kwargs.get("axis"))
    axes = (axes,) if isinstance(axes, int) else axes
    keeps = argument(node, 2, "keepdim", node.kwargs.get("keepdims", False))
    if not isinstance(axes, Sequence) or not axes or not isinstance(keeps, bool):
        return None
    if not all(isinstance(axis, int) for axis in axes):
        return None
    if any(axis >= 0 for axis in axes):
        shape, right = shape_of(given), trailing_axes(graph_module, given)
        if shape is None and right is None:
            return Refusal(
                "nothing tells over which axes it averages; capture the model with example inputs"
            )
        count = len(shape) if shape is not None else (right or 0) + 2
        axes = [axis - count if axis >= 0 else axis for axis in axes]
    return MeanPooling(node, given, tuple(sorted(axes)), keeps, size=(1,) * len(axes))


def _sizes(value: Any, rank: int) -> tuple[int, ...] | None:
    """One number for each axis, or None where they are not known."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    values = values * rank if len(values) == 1 else values
    return values if all(isinstance(each, int) for each in values) else None
