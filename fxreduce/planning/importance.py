"""Importance: how much a site is worth; the least important goes first."""

from __future__ import annotations

from fxreduce.errors import PlanError
from fxreduce.extensions import load_extensions
from fxreduce.planning.forced_state import ForcedState
from fxreduce.planning.measure import SiteStatistics
from fxreduce.planning.ranking import Importance, PerSite, SiteImportance
from fxreduce.planning.sensitivity import Sensitivity


def entropy(site: SiteStatistics) -> float:
    """The site's entropy in bits (EASIER, ECML PKDD 2024)."""
    return site.entropy


def residual(site: SiteStatistics) -> float:
    """The share of the output's variance that no affine map of the pre-activation explains.

    Pooled over channels, each with a map of its own: unexplained over all variance, from 0 to 1; 0
    where the output does not vary.
    """
    return site.statistics.pooled_residual()


_NAMED: dict[str, Importance] = {
    "entropy": PerSite(entropy, moments=False),
    "residual": PerSite(residual),
    "sensitivity": Sensitivity(),
    "batchnorm": ForcedState(),
}


def register_importance(name: str, importance: Importance | SiteImportance) -> None:
    """Let `importance=name` stand for an importance.

    Args:
        importance: a function of a site's statistics (`fxreduce.planning.measure.SiteStatistics`),
            or what sees the whole graph (`fxreduce.planning.ranking.Importance`).

    Raises:
        PlanError: it is neither.
    """
    _NAMED[name] = as_importance(importance)


def importance_names() -> tuple[str, ...]:
    """The names that importances are known by."""
    load_extensions("importances")
    return tuple(_NAMED)


def as_importance(importance: str | Importance | SiteImportance) -> Importance:
    """The importance that a name, an importance or a callable stands for.

    Raises:
        PlanError: it is none of these.
    """
    if isinstance(importance, Importance) and not isinstance(importance, type):
        return importance
    if callable(importance):
        return PerSite(importance)
    if importance in importance_names():  # compared, as what is no name may not be hashable
        return _NAMED[importance]
    raise PlanError(
        f"importance is a callable or one of {', '.join(map(repr, _NAMED))}; seen: {importance!r}"
    )
