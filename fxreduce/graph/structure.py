"""Calls that move or average values and keep the channels apart, and where the channels go.

A map S of each channel commutes with such a call M if every value of M's output is a mean of values
of one channel:  M(S(x)) = S'(M(x)), where S' maps each channel of the output as S does the one that
it comes from. Instead of a rule for each call and each of its arguments, the call is run on an
input that holds a random number for each channel: where only one axis of the output varies and
holds the same numbers, the channels have been kept apart, and the numbers tell which is which.
Weights of means are not negative, so that other values of a channel cannot cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxreduce.graph.nodes import has_hooks, implements, label, module_of, operation, shape_of
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


def carry(graph_module: GraphModule, path: Sequence[Node], start: Carried) -> Carried | Refusal:
    """Where channels lie behind structural calls of which each reads the one before.

    It holds for every size of input that the graph runs on: the example's is tried, and the same
    with each axis one longer.
    """
    names = ", ".join(map(label, path))
    if computed := next((node for node in path if len(node.all_input_nodes) != 1), None):
        return Refusal(f"the arguments of {label(computed)} are computed by the graph")
    if not path:
        return start
    shape = shape_of(path[0].all_input_nodes[0])
    if shape is None:
        return Refusal(
            f"nothing tells the shape of what {names} moves; capture the model with example inputs"
        )
    sizes = [example_size(size) for size in shape]
    axis = len(sizes) - 1 - start.rank
    numbers = torch.rand(
        sizes[axis], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    seen = None
    for longer in (None, *(place for place in range(len(sizes)) if place != axis)):
        tried = [size + (place == longer) for place, size in enumerate(sizes)]
        moved = _run(graph_module, path, _spread(numbers, axis, tried))
        if moved is None and seen is None:
            return Refusal(f"{names} does not run on the shape that the example has there")
        # With another number of channels, the operator that reads them does not run either.
        if moved is None or (seen is not None and seen.channels.shape != _along(moved, seen.rank)):
            continue
        found = _trace(moved, numbers)
        if found is None:
            return Refusal(
                f"channels cannot be told apart behind {names}, or a mean counts padding"
            )
        if seen is not None and not (
            seen.rank == found.rank and torch.equal(seen.channels, found.channels)
        ):
            return Refusal(f"the channels' place behind {names} depends on the size of the input")
        seen = found
    assert seen is not None  # the example's own shape has been tried
    return Carried(seen.rank, start.channels[seen.channels])


def _spread(numbers: Tensor, axis: int, shape: list[int]) -> Tensor:
    """A value of that shape with a number for each index of an axis."""
    lengths = [size if place == axis else 1 for place, size in enumerate(shape)]
    return numbers.view(lengths).expand(shape).contiguous()


def _along(value: Tensor, rank: int) -> tuple[int, ...]:
    """The length of the axis with so many axes right of it, as the shape of a vector."""
    return tuple(value.shape[value.dim() - 1 - rank : value.dim() - rank])


def _trace(moved: Tensor, numbers: Tensor) -> Carried | None:
    """The only axis along which the value varies and which of the numbers it holds, if so."""
    varying = [
        place
        for place in range(moved.dim())
        if moved.numel() and not _close(moved, moved.narrow(place, 0, 1))
    ]
    if len(varying) != 1:
        return None
    first = moved[tuple(slice(None) if place in varying else 0 for place in range(moved.dim()))]
    channels = (first.unsqueeze(1) - numbers).abs().argmin(1)
    if not _close(first, numbers[channels]):
        return None
    return Carried(moved.dim() - 1 - varying[0], channels)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= _ROUNDING).all())


def _run(graph_module: GraphModule, path: Sequence[Node], value: Tensor) -> Tensor | None:
    """What the calls make of another value than the graph's; None where they do not run on it."""
    for node in path:
        (given,) = node.all_input_nodes
        args, kwargs = map_arg((node.args, node.kwargs), {given: value}.__getitem__)
        target: Any = node.target
        if node.op == "call_module":
            target = module_of(graph_module, node)
        elif node.op == "call_method":
            target = getattr(Tensor, target)
        try:
            value = target(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError):
            return None
    return value
