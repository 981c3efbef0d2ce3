"""Random regions of operators, and their cheapest cover found by trying every order of merges."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from fxreduce.operators.add import add
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, identity
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import CostModel
from fxreduce.operators.regions import Leaf, Parallel, Region, Series, series
from fxreduce.operators.setting import Setting

WIDTHS = st.sampled_from((4, 8, 16, 32, 64, 96))


def leaf(operator: Operator) -> Leaf:
    return Leaf(operator, None)


def conv(out: int, into: int, kernel: int, **options: Any) -> Leaf:
    """A convolution of rank 2 whose geometry alone counts."""
    groups = options.pop("groups", 1)
    bias = torch.empty(out, device="meta") if options.pop("bias", True) else None
    pairs = {name: (size, size) for name, size in options.items()}
    weight = torch.empty(out, into // groups, kernel, kernel, device="meta")
    return leaf(Conv(weight, bias, groups=groups, **pairs))


@st.composite
def _links(draw: DrawFn, into: int, out: int, *, keeps: bool) -> Leaf:
    """An operator that may stand in a chain; one that keeps the map's size if so asked."""
    if into == out and draw(st.integers(0, 3)) == 0:
        scale = torch.empty(into, device="meta")
        return leaf(ScaleShift(scale, scale, 2))
    kernel = draw(st.sampled_from((1, 1, 3)))
    groups = into if out % into == 0 and draw(st.integers(0, 2)) == 0 else 1
    padding = kernel // 2 if keeps else draw(st.sampled_from((0, kernel // 2)))
    stride = 1 if keeps else draw(st.sampled_from((1, 1, 2)))
    bias = draw(st.booleans())
    return conv(out, into, kernel, groups=groups, padding=padding, stride=stride, bias=bias)


@st.composite
def _branches(draw: DrawFn, into: int, out: int) -> Region:
    middle = draw(st.lists(WIDTHS, max_size=2))
    widths = [into, *middle, out]
    return series(*(draw(_links(a, b, keeps=True)) for a, b in pairwise(widths)))


@st.composite
def regions(draw: DrawFn) -> tuple[Region, Setting]:
    """Two to four links, skips and pairs of branches behind one another, and the input they get."""
    into = channels = draw(WIDTHS)
    items: list[Region] = []
    kinds = draw(st.lists(st.sampled_from(("link", "skip", "pair")), min_size=1, max_size=3))
    for kind in kinds:
        out = channels if kind == "skip" else draw(WIDTHS)
        if kind == "link":
            items.append(draw(_links(channels, out, keeps=False)))
        else:
            beside = Series() if kind == "skip" else draw(_branches(channels, out))
            branches = draw(st.permutations((draw(_branches(channels, out)), beside)))
            items.append(Parallel(*branches, None))
        channels = out
    side = draw(st.sampled_from((16, 32)))
    return series(*items), Setting((1, into, side, side))


def behind(region: Region, setting: Setting) -> Setting:
    if isinstance(region, Leaf):
        return setting.after(region.operator)
    if isinstance(region, Parallel):
        branches = (region.left, region.right)
        return behind(next(each for each in branches if each_is_called(each)), setting)
    for item in region.items:
        setting = behind(item, setting)
    return setting


def each_is_called(region: Region) -> bool:
    return not isinstance(region, Series) or bool(region.items)


def cost_of(region: Region, setting: Setting, model: CostModel) -> float:
    """What a region costs as it is."""
    if isinstance(region, Leaf):
        return model.cost(region.operator, setting)
    if isinstance(region, Parallel):
        after = behind(region, setting)
        addition = model.cost(identity(after.shape[1], 2), after)
        return addition + sum(cost_of(e, setting, model) for e in (region.left, region.right))
    total = 0.0
    for item in region.items:
        total += cost_of(item, setting, model)
        setting = behind(item, setting)
    return total


def one_merge_away(region: Region, channels: int) -> Iterator[Region]:
    """The regions that one exact merge of two neighbours makes, whether it pays or not."""
    if isinstance(region, Parallel):
        left, right = region.left, region.right
        operators = [_alone(each, channels) for each in (left, right)]
        if None not in operators:
            merged = add(*operators)  # type: ignore[arg-type]
            if not isinstance(merged, Refusal):
                yield leaf(merged)
        for other in one_merge_away(left, channels):
            yield Parallel(other, right, None)
        for other in one_merge_away(right, channels):
            yield Parallel(left, other, None)
    elif isinstance(region, Series):
        items = region.items
        for place, (f, g) in enumerate(pairwise(items)):
            if isinstance(f, Leaf) and isinstance(g, Leaf):
                merged = compose(f.operator, g.operator)
                if not isinstance(merged, Refusal):
                    yield series(*items[:place], leaf(merged), *items[place + 2 :])
        setting = Setting((1, channels, 64, 64))
        for place, item in enumerate(items):
            for other in one_merge_away(item, setting.shape[1]):
                yield series(*items[:place], other, *items[place + 1 :])
            setting = behind(item, setting)


def _alone(region: Region, channels: int) -> Operator | None:
    """The operator that the region is; the identity where it is a skip."""
    if isinstance(region, Leaf):
        return region.operator
    return None if each_is_called(region) else identity(channels, 2)


def cheapest_by_trial(region: Region, setting: Setting, model: CostModel) -> float:
    """The least cost over all that any order of merges makes of the region."""
    waiting, seen = [region], {_key(region)}
    least = cost_of(region, setting, model)
    while waiting:
        for other in one_merge_away(waiting.pop(), setting.shape[1]):
            if _key(other) not in seen:
                seen.add(_key(other))
                waiting.append(other)
                least = min(least, cost_of(other, setting, model))
    return least


def _key(region: Region) -> object:
    if isinstance(region, Leaf):
        fields = vars(region.operator).items()
        return tuple((n, tuple(v.shape) if isinstance(v, Tensor) else v) for n, v in fields)
    if isinstance(region, Parallel):
        return "+", _key(region.left), _key(region.right)
    return ";", *map(_key, region.items)
