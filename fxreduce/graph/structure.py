"""Calls that move or average values and keep the channels apart, and where the channels go.

A map S of each channel commutes with such a call M if every value of M's output is a mean of values
of one channel:  M(S(x)) = S'(M(x)), where S' maps each channel of the output as S does the one that
it comes from. Instead of a rule for each call and each of its arguments, the call is run on an
input that holds a random number for each channel: where only one axis of the output varies and
holds the same numbers, the channels have been kept apart, and the numbers tell which is which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxreduce.graph.nodes import has_hooks, implements, module_of, operation, shape_of
from fxreduce.graph.setting import example_size
from fxreduce.operators.affine import Operator, Refusal, ScaleShift

_MOVES = {
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"),
    *("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze"),
    *("getitem", "select", "slice", "narrow", "roll", "flip", "contiguous"),
}
_POOLS = {f"{name}_pool{rank}d" for name in ("avg", "adaptive_avg") for rank in (1, 2, 3)}
_MODULES = (
    *(nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
# Two means of the same numbers differ by their rounding; two random numbers, by far more.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Carried:
    """Where the channels of a value lie behind structure.

    Attributes:
        rank: the number of axes right of the channel axis.
        channels: [C'], the channel that each channel now is, counted as before the structure.
    """

    rank: int
    channels: Tensor

    @classmethod
    def of(cls, operator: Operator) -> Carried:
        """The channels of an operator's own output."""
        return cls(operator.rank, torch.arange(operator.out_channels))

    def place(self, affine: ScaleShift) -> ScaleShift:
        """A map of each channel, as it is behind the structure."""
        channels = self.channels.to(affine.scale.device)
        return ScaleShift(affine.scale[channels], affine.shift[channels], self.rank)


def is_structural(graph_module: GraphModule, node: Node) -> bool:
    """Whether the call only moves or averages values."""
    module = module_of(graph_module, node)
    if module is None:
        return operation(node) in _MOVES | _POOLS | {"mean"}
    known = any(implements(module, base, ("forward",)) for base in _MODULES)
    return known and not has_hooks(module)


def carry(graph_module: GraphModule, node: Node, carried: Carried) -> Carried | Refusal:
    """Where the channels of the input of a structural call lie in its output.

    It holds for every size of input that the graph runs on: the example's is tried, and the same
    with each axis one longer.
    """
    if len(node.all_input_nodes) != 1:
        return Refusal("its arguments are computed by the graph")
    shape = shape_of(node.all_input_nodes[0])
    if shape is None:
        return Refusal(
            "nothing tells the shape of what it rearranges; capture the model with example inputs"
        )
    sizes = [example_size(size) for size in shape]
    axis = len(sizes) - 1 - carried.rank
    seen = _trace(graph_module, node, sizes, axis)
    if seen is None or isinstance(seen, Refusal):
        return seen or Refusal("it does not run on the shape that the example has there")
    for other in range(len(sizes)):
        longer = [size + (other == place) for place, size in enumerate(sizes)]
        again = None if other == axis else _trace(graph_module, node, longer, axis)
        if isinstance(again, Refusal):
            return again
        # With another number of channels, the operator that reads them does not run either.
        if again is None or again.channels.numel() != seen.channels.numel():
            continue
        if again.rank != seen.rank or not torch.equal(again.channels, seen.channels):
            return Refusal("where it leaves the channels depends on the size of its input")
    return Carried(seen.rank, carried.channels[seen.channels])


def _trace(
    graph_module: GraphModule, node: Node, shape: list[int], axis: int
) -> Carried | Refusal | None:
    """Where the channels of an input of that shape go; None where the call does not run on it."""
    numbers = torch.rand(
        shape[axis], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    lengths = [shape[axis] if place == axis else 1 for place in range(len(shape))]
    try:
        moved = _run(graph_module, node, numbers.view(lengths).expand(shape).contiguous())
    except (RuntimeError, IndexError, ValueError):
        return None
    varying = [
        place
        for place in range(moved.dim())
        if moved.numel() and not _close(moved, moved.narrow(place, 0, 1))
    ]
    if not varying:
        return Refusal("it leaves no axis along which channels can be told apart")
    first = moved[tuple(slice(None) if place == varying[0] else 0 for place in range(moved.dim()))]
    channels = (first.unsqueeze(1) - numbers).abs().argmin(1)
    if len(varying) > 1 or not _close(first, numbers[channels]):
        return Refusal("it mixes channels, or counts padding in a mean")
    return Carried(moved.dim() - 1 - varying[0], channels)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= _ROUNDING).all())


def _run(graph_module: GraphModule, node: Node, value: Tensor) -> Tensor:
    """What the call makes of another value than the graph's."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda _: value)
    target: Any = node.target
    if node.op == "call_module":
        target = module_of(graph_module, node)
    elif node.op == "call_method":
        target = getattr(Tensor, target)
    result: Tensor = target(*args, **kwargs)
    return result
