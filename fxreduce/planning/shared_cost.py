"""Latencies that several processes decide by: those that the first one has taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from fxreduce.calibration.ranks import ALONE, Ranks
from fxreduce.graph.latency import LatencyCost
from fxreduce.operators.cost import Candidate, CostModel


@dataclass(frozen=True)
class SharedLatencyCost(LatencyCost):
    """Rank 0 times while the others wait: their clocks differ, and their calls would disturb it.

    When they do not work together any more, each rank times for itself what is not known.

    Attributes:
        own: what it is made of, which afterwards knows the figures, too.
    """

    own: LatencyCost = field(default_factory=LatencyCost, compare=False)
    ranks: Ranks = field(default=ALONE, compare=False)

    def costs(self, candidates: Sequence[Candidate]) -> list[float]:
        if not self.ranks.active:
            return self.own.costs(candidates)
        found = self.ranks.first("timing operators", lambda: self.own.costs(candidates))
        self.own.learn(candidates, found)
        return found

    def timed(self, take: Callable[[], list[float]]) -> list[float]:
        return self.ranks.first("timing models", take) if self.ranks.active else take()


def shared_cost(cost: CostModel, ranks: Ranks) -> CostModel:
    """The cost model as the ranks plan by it together."""
    if ranks.size == 1 or not isinstance(cost, LatencyCost):
        return cost
    given = {each.name: getattr(cost, each.name) for each in fields(LatencyCost)}
    return SharedLatencyCost(**given, own=cost, ranks=ranks)


def own_cost(cost: CostModel) -> CostModel:
    """The cost model that was shared, for what a rank does by itself."""
    return cost.own if isinstance(cost, SharedLatencyCost) else cost
