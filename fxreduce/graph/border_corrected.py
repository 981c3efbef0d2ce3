"""The module that two padded convolutions become: merged inside, themselves at the border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

from fxreduce.graph.affine import register_operator
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import module_input, module_of
from fxreduce.operators.affine import Conv, Operator, Refusal, on_meta
from fxreduce.operators.border import (
    Strip,
    Window,
    is_turned,
    strip_calls,
    strips,
    turned,
    windows,
)
from fxreduce.operators.cost import Candidate
from fxreduce.operators.setting import Setting


class BorderCorrectedConv(nn.Module):
    """second(first(x)) by one convolution, but for the outputs that see the second one's padding.

    These are computed by the two convolutions on slices of the input; those along the last axis are
    turned before, see `operators.border.is_turned`. Inputs of which nothing lies inside go through
    the two as they are.
    """

    def __init__(self, inside: Conv, first: Conv, second: Conv, like: Tensor | None) -> None:
        super().__init__()
        self.inside = to_module(inside, like)
        self.first = to_module(first, like)
        self.second = to_module(second, like)
        self.windows = tuple(zip(windows(first), windows(second), strict=True))
        self.geometry = (on_meta(inside), on_meta(first), on_meta(second))
        self._turned = tuple(map(turned, self.geometry[1:]))
        self._sizes: tuple[int, ...] | None = None

    def for_sizes(self, sizes: tuple[int, ...]) -> BorderCorrectedConv:
        """The same for inputs of these spatial sizes alone, by a list of functions.

        Its parameters are those of this module.
        """
        module = copy(self)
        module._sizes = sizes
        return module

    @property
    def rank(self) -> int:
        """How many spatial axes an input has."""
        return len(self.windows)

    def forward(self, x: Tensor) -> Tensor:
        rank = self.rank
        sizes = tuple(x.shape[-rank:]) if self._sizes is None else self._sizes
        each_axis = [
            strips(one, two, size) for size, (one, two) in zip(sizes, self.windows, strict=True)
        ]
        if any(found is None for found in each_axis):
            whole: Tensor = self.second(self.first(x))
            return whole
        y: Tensor = self.inside(x)
        for axis, found in enumerate(each_axis):
            turn = is_turned(axis, rank)
            along = -rank if turn else axis - rank
            whole, out = (t.transpose(-1, -rank) for t in (x, y)) if turn else (x, y)
            pair = [
                partial(_call_turned, *each) if turn else each[0]
                for each in zip((self.first, self.second), self._turned, strict=True)
            ]
            for strip in found or ():
                made = _strip(pair, self.windows[axis][0], whole, along, sizes[axis], strip)
                out.narrow(along, strip.first, strip.count).copy_(made)
        return y

    def calls(self, setting: Setting) -> list[Candidate]:
        """The operators that are called on an input, each with the input that it gets."""
        inside, first, second = self.geometry
        border = strip_calls(first, second, setting)
        if border is None:
            return [(first, setting), (second, setting.after(first))]
        return [(inside, setting), *border]


def _strip(
    pair: Sequence[Callable[[Tensor], Tensor]],
    window: Window,
    x: Tensor,
    along: int,
    size: int,
    strip: Strip,
) -> Tensor:
    """The outputs of a strip, by the two convolutions.

    Args:
        window: of the first one along the axis.
        along: the axis of `x` at one end of which the strip lies, which is `size` long.
    """
    first, second = pair
    stop = min(strip.stop, size)
    middle = first(x.narrow(along, strip.start, stop - strip.start))
    taken = min(strip.taken, window.length(stop - strip.start) - strip.skipped)
    outputs = second(middle.narrow(along, strip.skipped, taken))
    return outputs.narrow(along, strip.dropped, strip.count)


def _call_turned(conv: nn.Module, options: Conv, x: Tensor) -> Tensor:
    """The convolution's value on an input whose first and last spatial axis are swapped.

    Args:
        options: the convolution, turned, for all but its weight and bias.
    """
    module: Any = conv
    weight: Tensor = module.weight.transpose(-options.rank, -1)
    function = functional.conv2d if options.rank == 2 else functional.conv3d
    return function(
        x, weight, module.bias, options.stride, options.padding, options.dilation, options.groups
    )


def _read(graph_module: GraphModule, node: Node) -> tuple[Operator, Node] | Refusal | None:
    module, given = module_of(graph_module, node), module_input(node)
    if given is None or not isinstance(module, BorderCorrectedConv):
        return None
    return Refusal("its border is corrected, which no single convolution does")


register_operator(_read, modules=(BorderCorrectedConv,))
