"""The cheapest exact cover of a region: which parts of it become one operator each.

A region has one input and one output and is put together from operators in series and in parallel:

    cover(a ; b ; ...)  =  min over cuts into parts of their sum, a part being an item's cover or
                           one operator for several items
    cover(a + b)        =  min(one operator, cover(a) + cover(b) + the addition)

Merging only a part of it can cost more than leaving all apart and more than merging all (a wide
operator between narrow ones, a narrow one beside a wide one), so that no order of merges that each
pay finds the cheapest cover. This one does, by dynamic programming over the tree of the region.
Source: cutting a chain as in matrix-chain multiplication, on series-parallel trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fxreduce.operators.add import add
from fxreduce.operators.affine import Operator, Refusal, identity, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import Candidate, CostModel, costs
from fxreduce.operators.setting import Setting

# Items of a series that become one operator at most, so that the work grows with its length.
LONGEST_PART = 16


@dataclass(frozen=True, eq=False)
class Leaf:
    """An operator, and what the caller knows its call by."""

    operator: Operator
    call: object


@dataclass(frozen=True, eq=False)
class Series:
    """Regions that follow one another; none at all is a skip."""

    items: tuple[Region, ...] = ()


@dataclass(frozen=True, eq=False)
class Parallel:
    """Two regions on one input, one of them at most a skip, and what adds their values."""

    left: Region
    right: Region
    addition: object


Region = Leaf | Series | Parallel
Able = Callable[[Region], bool]


@dataclass(frozen=True)
class Cover:
    """What a region costs, and the parts of it that become one operator each, from the input on."""

    cost: float
    merged: tuple[Region, ...] = ()
    fewer: int = 0
    """How many operators fewer there are then."""

    @classmethod
    def whole(cls, cost: float, region: Region) -> Cover:
        """The region as one operator."""
        return cls(cost, (region,), sum(1 for _ in leaves(region)) - 1)


def series(*regions: Region) -> Region:
    """The regions one after the other, those of a series among them one by one."""
    items: list[Region] = []
    for region in regions:
        items += region.items if isinstance(region, Series) else (region,)
    return items[0] if len(items) == 1 else Series(tuple(items))


def leaves(region: Region) -> Iterator[Leaf]:
    """The operators of a region, from its input on."""
    if isinstance(region, Leaf):
        yield region
        return
    inside = region.items if isinstance(region, Series) else (region.left, region.right)
    for each in inside:
        yield from leaves(each)


def additions(region: Region) -> Iterator[object]:
    """What adds values inside a region."""
    if isinstance(region, Leaf):
        return
    inside = region.items if isinstance(region, Series) else (region.left, region.right)
    for each in inside:
        yield from additions(each)
    if isinstance(region, Parallel):
        yield region.addition


def merge(region: Region, read: Callable[[Leaf], Operator]) -> Operator | Refusal:
    """The one operator that equals the region, or why there is none.

    Args:
        region: no skip.
        read: the operator of a leaf, with its values or on the meta device.
    """
    if isinstance(region, Leaf):
        return read(region)
    if isinstance(region, Series):
        merged = merge(region.items[0], read)
        for item in region.items[1:]:
            following = merge(item, read)
            if isinstance(merged, Refusal) or isinstance(following, Refusal):
                return merged if isinstance(merged, Refusal) else following
            merged = compose(merged, following)
        return merged
    f, g = (None if _is_skip(each) else merge(each, read) for each in (region.left, region.right))
    if isinstance(f, Refusal) or isinstance(g, Refusal):
        return f if isinstance(f, Refusal) else g  # type: ignore[return-value]
    one = f or g
    assert one is not None  # as one of the two at most is a skip
    skip = identity(one.in_channels, one.rank)
    return add(f or skip, g or skip)


def cheapest_cover(
    region: Region, setting: Setting, model: CostModel, able: Able = lambda _: True
) -> Cover:
    """The cover of least cost; of equal ones one that merges less, and rather in front.

    Args:
        setting: the input of the region.
        able: whether a part may become one operator, for reasons that the operators do not tell.
    """
    search = _Search(able)
    options = search.options(region, setting)
    rates = costs(model, search.candidates)
    return options.best(rates)


class _Options:
    """What may become of a region; costs are looked up by the places of its candidates."""

    def best(self, rates: Sequence[float]) -> Cover:
        raise NotImplementedError


@dataclass(frozen=True)
class _One(_Options):
    place: int

    def best(self, rates: Sequence[float]) -> Cover:
        return Cover(rates[self.place])


@dataclass(frozen=True)
class _Cuts(_Options):
    items: tuple[_Options, ...]
    spans: dict[tuple[int, int], tuple[int, Region]]

    def best(self, rates: Sequence[float]) -> Cover:
        size = len(self.items)
        total = [(0.0, 0)] * (size + 1)  # cost and merges of the best cover from a place on
        chosen: list[tuple[Cover, int]] = []  # its first part and where that ends, last place first
        for start in reversed(range(size)):
            parts = [(self.items[start].best(rates), start + 1)]
            for end in range(start + 2, min(start + LONGEST_PART, size) + 1):
                if (start, end) in self.spans:
                    place, part = self.spans[start, end]
                    parts.append((Cover.whole(rates[place], part), end))
            rated = [
                (cover.cost + total[end][0], cover.fewer + total[end][1], -place)
                for place, (cover, end) in enumerate(parts)
            ]
            least, fewer, longest = min(rated)
            chosen.append(parts[-longest])
            total[start] = least, fewer
        merged: list[Region] = []
        start = 0
        while start < size:
            cover, start = chosen[size - 1 - start]
            merged += cover.merged
        return Cover(total[0][0], tuple(merged), total[0][1])


@dataclass(frozen=True)
class _Sum(_Options):
    branches: tuple[_Options, ...]
    addition: int
    merged: tuple[int, Region] | None

    def best(self, rates: Sequence[float]) -> Cover:
        covers = [branch.best(rates) for branch in self.branches]
        cost = rates[self.addition] + sum(cover.cost for cover in covers)
        parts = tuple(part for cover in covers for part in cover.merged)
        apart = Cover(cost, parts, sum(cover.fewer for cover in covers))
        if self.merged is None:
            return apart
        place, region = self.merged
        return min(apart, Cover.whole(rates[place], region), key=lambda cover: cover.cost)


@dataclass
class _Search:
    """Finds all options of a region, so that what they cost can be rated together."""

    able: Able
    candidates: list[Candidate] = field(default_factory=list)

    def options(self, region: Region, setting: Setting) -> _Options:
        if isinstance(region, Leaf):
            return _One(self._rated(on_meta(region.operator), setting))
        if isinstance(region, Parallel):
            branches = [each for each in (region.left, region.right) if not _is_skip(each)]
            after = _after(region, setting)
            one = next(leaves(region)).operator
            channels = after.shape[-one.rank - 1]
            addition = self._rated(identity(channels, one.rank), after)
            whole = merge(region, _geometry) if self.able(region) else Refusal("")
            return _Sum(
                tuple(self.options(each, setting) for each in branches),
                addition,
                None if isinstance(whole, Refusal) else (self._rated(whole, setting), region),
            )
        settings = [setting]
        for item in region.items:
            settings.append(_after(item, settings[-1]))
        items = tuple(map(self.options, region.items, settings))
        return _Cuts(items, dict(self._spans(region, settings)))

    def _spans(
        self, region: Series, settings: Sequence[Setting]
    ) -> Iterator[tuple[tuple[int, int], tuple[int, Region]]]:
        """Neighbouring items, two at least, that merge into one, by where they begin and end."""
        singles = [merge(item, _geometry) for item in region.items]
        for start, first in enumerate(singles):
            merged = first
            stop = min(start + LONGEST_PART, len(singles))
            for end in range(start + 2, stop + 1):
                following = singles[end - 1]
                if isinstance(merged, Refusal) or isinstance(following, Refusal):
                    break
                merged = compose(merged, following)
                part = Series(region.items[start:end])
                if not isinstance(merged, Refusal) and self.able(part):
                    yield (start, end), (self._rated(merged, settings[start]), part)

    def _rated(self, operator: Operator, setting: Setting) -> int:
        self.candidates.append((on_meta(operator), setting))
        return len(self.candidates) - 1


def _geometry(leaf: Leaf) -> Operator:
    return on_meta(leaf.operator)


def _is_skip(region: Region) -> bool:
    return isinstance(region, Series) and not region.items


def _after(region: Region, setting: Setting) -> Setting:
    """The setting behind a region."""
    if isinstance(region, Leaf):
        return setting.after(region.operator)
    if isinstance(region, Parallel):
        return _after(region.right if _is_skip(region.left) else region.left, setting)
    for item in region.items:
        setting = _after(item, setting)
    return setting
