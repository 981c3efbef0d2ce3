"""Importance: how much a site is worth; the least important goes first."""

from __future__ import annotations

from collections.abc import Callable

from fxreduce.errors import PlanError
from fxreduce.planning.measure import SiteStatistics

Importance = Callable[[SiteStatistics], float]


def entropy(site: SiteStatistics) -> float:
    """The site's entropy in bits (EASIER)."""
    return site.entropy


_NAMED: dict[str, Importance] = {"entropy": entropy}


def register_importance(name: str, importance: Importance) -> None:
    """Let `importance=name` stand for a function of a site's statistics."""
    _NAMED[name] = importance


def as_importance(importance: str | Importance) -> Importance:
    """The function that a name or a callable stands for.

    Raises:
        PlanError: the name is not known.
    """
    if callable(importance):
        return importance
    if importance in tuple(_NAMED):  # compared, as what is no name may not be hashable
        return _NAMED[importance]
    raise PlanError(
        f"importance is a callable or one of {', '.join(map(repr, _NAMED))}; seen: {importance!r}"
    )
