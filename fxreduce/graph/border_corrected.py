"""The module that two padded convolutions become: merged inside, themselves at the border."""

from __future__ import annotations

from copy import copy

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import register_operator
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import module_input, module_of
from fxreduce.operators.affine import Conv, Operator, Refusal, on_meta
from fxreduce.operators.border import Strip, strip_calls, strips, windows
from fxreduce.operators.cost import Candidate
from fxreduce.operators.setting import Setting


class BorderCorrectedConv(nn.Module):
    """second(first(x)) by one convolution, but for the outputs that see the second one's padding.

    These are computed by the two convolutions on slices of the input. Inputs of which nothing lies
    inside go through the two as they are.
    """

    def __init__(self, inside: Conv, first: Conv, second: Conv, like: Tensor | None) -> None:
        super().__init__()
        self.inside = to_module(inside, like)
        self.first = to_module(first, like)
        self.second = to_module(second, like)
        self.windows = tuple(zip(windows(first), windows(second), strict=True))
        self.geometry = tuple(on_meta(operator) for operator in (inside, first, second))
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
            for strip in found or ():
                place = y.narrow(axis - rank, strip.first, strip.count)
                place.copy_(self._strip(x, axis - rank, sizes[axis], strip))
        return y

    def calls(self, setting: Setting) -> list[Candidate]:
        """The operators that are called on an input, each with the input that it gets."""
        inside, first, second = self.geometry
        assert isinstance(first, Conv)
        assert isinstance(second, Conv)  # as they were made from such
        border = strip_calls(first, second, setting)
        if border is None:
            return [(first, setting), (second, setting.after(first))]
        return [(inside, setting), *border]

    def _strip(self, x: Tensor, axis: int, size: int, strip: Strip) -> Tensor:
        stop = min(strip.stop, size)
        middle = self.first(x.narrow(axis, strip.start, stop - strip.start))
        computed = self.windows[axis][0].length(stop - strip.start)
        taken = min(strip.taken, computed - strip.skipped)
        outputs: Tensor = self.second(middle.narrow(axis, strip.skipped, taken))
        return outputs.narrow(axis, strip.dropped, strip.count)


def _read(graph_module: GraphModule, node: Node) -> tuple[Operator, Node] | Refusal | None:
    module, given = module_of(graph_module, node), module_input(node)
    if given is None or not isinstance(module, BorderCorrectedConv):
        return None
    return Refusal("its border is corrected, which no single convolution does")


register_operator(_read, modules=(BorderCorrectedConv,))
