"""f then a padded g: one operator inside, and the original two on thin slices for the border.

Where g pads what f computed, the merged operator would read f beyond its border, where the true
value is zero. That reaches only the outputs near the border: output j of an axis is inside if all
taps s2 j - p2 + d2 a of g fall on what f computed. There the merged operator is right; the others
are computed by f and g on the slice of the input that they read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from fxreduce.operators.affine import Conv, Operator, Refusal
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import Candidate
from fxreduce.operators.setting import Setting


class Window(NamedTuple):
    """What a convolution does along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def reach(self) -> int:
        """From its first to its last tap."""
        return self.dilation * (self.kernel - 1)

    def length(self, size: int) -> int:
        """The outputs of an input of that size."""
        return (size + 2 * self.padding - self.reach - 1) // self.stride + 1


@dataclass(frozen=True)
class Strip:
    """The outputs at one end of an axis, and the slice of the input that gives them.

    Attributes:
        start, stop: of the slice of the input.
        skipped: f's outputs on the slice that are left out in front of g's input.
        taken: f's outputs that g reads after those.
        dropped: g's outputs in front of the strip's.
        first, count: the strip's place among the outputs.
    """

    start: int
    stop: int
    skipped: int
    taken: int
    dropped: int
    first: int
    count: int


def windows(operator: Conv) -> tuple[Window, ...]:
    """The operator's windows, axis by axis."""
    geometry = (operator.kernel, operator.stride, operator.padding, operator.dilation)
    return tuple(Window(*axis) for axis in zip(*geometry, strict=True))


def strips(f: Window, g: Window, size: int) -> tuple[Strip, ...] | None:
    """The strips of an axis of that size; None where it is so short that nothing lies inside."""
    middle = f.length(size)
    outputs = g.length(middle)
    low = -(-g.padding // g.stride)
    high = (middle - 1 + g.padding - g.reach) // g.stride + 1
    if min(middle, outputs) < 1 or not low < high <= outputs:
        return None
    found = []
    if low:
        taken = max(g.stride * (low - 1) - g.padding + g.reach + 1, 1)
        stop = f.stride * (taken - 1) - f.padding + f.reach + 1
        found.append(Strip(0, max(stop, 1), 0, taken, 0, 0, low))
    if high < outputs:
        # Slices begin where the strides do, and hold something even where all is padding.
        dropped = max(low, high - (middle - 1) // g.stride)
        begin = g.stride * (high - dropped)  # of f's outputs that g reads
        skipped = max(-(-f.padding // f.stride), begin - (size - 1) // f.stride)
        skipped = min(skipped, begin)
        start = f.stride * (begin - skipped)
        found.append(Strip(start, size, skipped, middle - begin, dropped, high, outputs - high))
    return tuple(found)


def compose_inside(f: Operator, g: Operator) -> Conv | Refusal:
    """The operator equal to f then g where g reads no padding.

    Returns:
        A new operator in float64 (for operators on the meta device: its geometry), or a `Refusal`.
    """
    if not isinstance(f, Conv) or not isinstance(g, Conv):
        return Refusal("only convolutions reach beyond a border")
    if f.transposed or g.transposed:
        return Refusal("a transposed convolution writes each output from inputs of its own number")
    if f.border is not None or g.border is not None:
        return Refusal("a constant channel ends at the border, so that there are two of them")
    modes = {each.padding_mode for each in (f, g) if each.is_padded} - {"zeros"}
    if modes:
        return Refusal(f"{' and '.join(sorted(modes))} padding reads values, not zeros")
    merged = compose(f, replace(g, padding=(0,) * g.rank))
    if isinstance(merged, Refusal):
        return merged
    assert isinstance(merged, Conv)  # as both are
    reach = zip(f.padding, f.stride, g.padding, strict=True)
    return replace(merged, padding=tuple(p1 + s1 * p2 for p1, s1, p2 in reach))


def turned(operator: Conv) -> Conv:
    """The operator for an input whose first and last spatial axis are swapped."""

    def swapped(each: tuple[int, ...]) -> tuple[int, ...]:
        order = list(each)
        order[0], order[-1] = order[-1], order[0]
        return tuple(order)

    return replace(
        operator,
        weight=operator.weight.transpose(-operator.rank, -1),
        stride=swapped(operator.stride),
        padding=swapped(operator.padding),
        dilation=swapped(operator.dilation),
    )


def is_turned(axis: int, rank: int) -> bool:
    """Whether the strips along a spatial axis are turned before, so that they have long rows.

    Convolutions are several times as fast on these as on columns.
    """
    return 0 < axis == rank - 1


def strip_calls(f: Conv, g: Conv, setting: Setting) -> Iterator[Candidate] | None:
    """The calls that give the strips, of all axes; None where nothing lies inside."""
    along = zip(windows(f), windows(g), setting.shape[-f.rank :], strict=True)
    each_axis = [strips(one, two, size) for one, two, size in along]
    if any(found is None for found in each_axis):
        return None
    return _calls(f, g, setting, [found or () for found in each_axis])


def _calls(
    f: Conv, g: Conv, setting: Setting, each_axis: list[tuple[Strip, ...]]
) -> Iterator[Candidate]:
    upright = replace(setting, sliced=True)
    for axis, found in enumerate(each_axis):
        turn = is_turned(axis, f.rank)
        one, two = (turned(f), turned(g)) if turn else (f, g)
        whole, along = (_turned_setting(upright, f.rank), 0) if turn else (upright, axis)
        for strip in found:
            size = min(strip.stop, whole.shape[along - f.rank]) - strip.start
            sliced = whole.resized(along - f.rank, size)
            yield one, sliced
            yield two, sliced.after(one).resized(along - f.rank, strip.taken)


def _turned_setting(setting: Setting, rank: int) -> Setting:
    shape = setting.shape
    last = setting.resized(-1, shape[-rank])
    return last.resized(-rank, shape[-1])
