"""What ranks sites: a function of one site's statistics, or an object that sees the whole graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean
from typing import Protocol, runtime_checkable

from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.errors import PlanError
from fxreduce.operators.affine import Refusal
from fxreduce.planning.measure import SiteStatistics


@dataclass(frozen=True)
class Rank:
    """Where a site stands.

    Attributes:
        value: the least goes first. It may be infinite, but not NaN.
        unjudged: why the importance's own rule says nothing of the site; it then ranks after all
            sites of which the rule does. None where the rule does.
    """

    value: float
    unjudged: str | None = None

    @property
    def order(self) -> tuple[bool, float]:
        """What sites are sorted by."""
        return self.unjudged is not None, self.value


@dataclass(frozen=True)
class Stage:
    """What an importance may look at: planning as far as it has come.

    Attributes:
        graph_module: the graph without the sites that are removed so far; read it only.
        sites: the statistics in it of the sites that may go, by name, in order of execution.
        calibration: the batches to measure on.
        without: the graph without one more site, what compensates for it in its place, or why the
            site cannot be removed. The graphs share their weights.
    """

    graph_module: GraphModule
    sites: Mapping[str, SiteStatistics]
    calibration: Calibration
    without: Callable[[str], GraphModule | Refusal]


SiteImportance = Callable[[SiteStatistics], float]


@runtime_checkable
class Importance(Protocol):
    """Ranks the sites that may go, again after each removal."""

    @property
    def moments(self) -> bool:
        """Whether `rank` reads the moments of the sites' statistics."""
        ...

    def rank(self, stage: Stage) -> Mapping[str, Rank]:
        """The rank of every site of the stage, by name."""
        ...


@dataclass(frozen=True)
class PerSite:
    """An importance that looks at each site's statistics alone."""

    function: SiteImportance
    moments: bool = True

    def rank(self, stage: Stage) -> Mapping[str, Rank]:
        return {name: Rank(self.function(site)) for name, site in stage.sites.items()}


def ranked(importance: Importance, stage: Stage) -> dict[str, Rank]:
    """The rank of every site of the stage.

    Several processes get the same. Where an importance of a user's own that runs batches by itself
    tells them differently, as each runs its own, their mean counts.

    Raises:
        PlanError: the importance gives a site none, or one that is not a number.
    """
    found = importance.rank(stage)
    own = {name: _checked(name, found.get(name)) for name in stage.sites}
    ranks = stage.calibration.ranks
    if ranks.size == 1:
        return own
    values = ranks.all("the importances", {name: rank.value for name, rank in own.items()})
    unjudged = ranks.first("the unjudged", lambda: [rank.unjudged for rank in own.values()])
    if all(theirs == values[0] for theirs in values):
        means = values[0]
    else:
        means = {name: fmean(theirs[name] for theirs in values) for name in own}
    return {
        name: _checked(name, Rank(means[name], why))
        for name, why in zip(own, unjudged, strict=True)
    }


def _checked(name: str, rank: object) -> Rank:
    if not isinstance(rank, Rank):
        raise PlanError(
            f"an importance's rank(stage) returns a Rank for every site; for {name} it is {rank!r}"
        )
    try:
        value = float(rank.value)
    except (TypeError, ValueError):
        value = nan
    if isnan(value):
        raise PlanError(
            f"an importance is a number for every site, the least goes first; for {name} it is "
            f"{rank.value!r}"
        )
    return Rank(value, rank.unjudged)
