"""What planning may remove next, and in which order: single sites, or regions that pay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from typing import Protocol

from fxreduce.errors import UnsupportedError
from fxreduce.planning.gain import Gains, Sites
from fxreduce.planning.ranking import Rank

CANDIDATES = ("auto", "sites", "regions")


class Order(Protocol):
    """An order of what may be removed next."""

    def next(self, candidates: Collection[str], ranks: Mapping[str, Rank]) -> list[Sites]:
        """Sets of the candidates, the best to remove first."""
        ...

    def remove(self, sites: Sites) -> None:
        """Go on without these sites."""
        ...


class BySite:
    """One site after the other, the least important first, as the published methods go."""

    def next(self, candidates: Collection[str], ranks: Mapping[str, Rank]) -> list[Sites]:
        return [(name,) for name in sorted(candidates, key=lambda name: ranks[name].order)]

    def remove(self, sites: Sites) -> None:
        pass


class ByRegion:
    """Sets of sites that save something together, the least damage for what they save first.

    The damage of a set is the sum of its sites' importances, counted from the least of all. Sites
    that save nothing come last, the least important first.
    """

    def __init__(self, gains: Gains) -> None:
        self._gains = gains

    def next(self, candidates: Collection[str], ranks: Mapping[str, Rank]) -> list[Sites]:
        gains = self._gains.worthwhile(candidates)
        values = [ranks[name].value for name in candidates]
        least = min([0.0, *(value for value in values if value > -inf)])

        def worth(chosen: Sites) -> tuple[bool, float, float]:
            damage = sum(max(ranks[name].value - least, 0.0) for name in chosen)
            unjudged = any(ranks[name].unjudged is not None for name in chosen)
            return unjudged, damage / gains[chosen], -gains[chosen]

        rest = [name for name in candidates if (name,) not in gains]
        return [*sorted(gains, key=worth), *BySite().next(rest, ranks)]

    def remove(self, sites: Sites) -> None:
        self._gains.remove(sites)


def require_candidates(name: str) -> None:
    """Raise UnsupportedError unless there are such candidates."""
    if name not in CANDIDATES:
        raise UnsupportedError(
            f"candidates is one of {', '.join(map(repr, CANDIDATES))}; seen: {name!r}"
        )
