"""A plan carried out on the graphs of torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch.fx import GraphModule

from fxreduce.dynamo.reduction import Reduction
from fxreduce.errors import PlanError
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.operators.affine import ScaleShift
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.refit import Refit
from fxreduce.planning.crop import cropping
from fxreduce.planning.execute import Decisions
from fxreduce.planning.fingerprint import (
    Fingerprint,
    digest,
    digest_of,
    fingerprint,
    require_same,
)
from fxreduce.report.report import Report

Fit = tuple[str, tuple[float, ...], tuple[float, ...], int]
NOT_FITTED = (
    "the fitted weights are left out, as the model's weights are not those that they were fitted "
    "to; make a new plan to refit these"
)


@dataclass(frozen=True)
class PlannedRemoval:
    """Removes a plan's rectifiers from a graph of the architecture that it was made for.

    Attributes:
        sites: what is removed, in order.
        maps: name, scale, shift and rank of the affine maps that take the place of some.
        architecture: what a graph must be.
        fitted_to: a hash of the model's weights, which alone the fitted ones go with.
        fitted: a hash of the fitted weights, by which they are compared.
        decisions: the plan, as it is where the fitted weights are right.
    """

    sites: tuple[str, ...]
    maps: tuple[Fit, ...]
    architecture: Fingerprint
    fitted_to: str
    fitted: str
    decisions: Decisions = field(compare=False, repr=False)

    @classmethod
    def of(
        cls,
        decisions: Decisions,
        maps: Mapping[str, ScaleShift],
        architecture: Fingerprint,
        fitted_to: str,
    ) -> PlannedRemoval:
        """`maps` are those that serve where the fitted weights do not."""
        fits = tuple(
            (name, tuple(fit.scale.tolist()), tuple(fit.shift.tolist()), fit.rank)
            for name, fit in maps.items()
        )
        fitted = digest_of(decisions.weights.items())
        return cls(decisions.sites, fits, architecture, fitted_to, fitted, decisions)

    def fits(self, graph_module: GraphModule) -> bool:
        """Whether the graph is of the plan's architecture; a warning says why it is not."""
        try:
            require_same(self.architecture, fingerprint(graph_module))
        except PlanError as error:
            message = f"a graph of torch.compile runs with all its rectifiers: {error}"
            warnings.warn(message, stacklevel=2)
            return False
        return True

    def __call__(self, graph_module: GraphModule) -> tuple[Reduction, ...]:
        """The ways to remove the sites: with fitted weights where they are right, and without."""
        maps = {name: _map(scale, shift, rank) for name, scale, shift, rank in self.maps}
        plain, decisions = Linearise(self.sites, maps), self.decisions
        if not decisions.weights:
            return (Reduction((plain,)),)
        if digest(graph_module) != self.fitted_to:
            refusal = RefusedRewrite("the whole graph", NOT_FITTED, Refit.name)
            warnings.warn(f"in a graph of torch.compile {NOT_FITTED}", stacklevel=2)
            return (Reduction((plain,), refusals=(refusal,)),)
        fit = Refit(decisions.weights, decisions.reads)
        passes = (
            Linearise(self.sites, decisions.maps),
            *cropping(decisions.cropped, decisions.cost),
        )
        return (Reduction(passes, (fit,)), Reduction((plain,)))

    def explain(self, report: Report) -> Report:
        """The report of a reduced graph with what the plan says: order, measures and reasons."""
        gone, decisions = set(report.removed), self.decisions
        return replace(
            report,
            sites=tuple(
                replace(
                    row,
                    entropy=decisions.entropies.get(row.name),
                    importance=decisions.importances.get(row.name),
                )
                for row in report.sites
            ),
            removed=tuple(name for name in self.sites if name in gone),
            refusals=tuple(dict.fromkeys((*decisions.refusals, *report.refusals))),
            decisions=(*report.decisions, *decisions.lines),
            trials=decisions.trials,
        )


def _map(scale: tuple[float, ...], shift: tuple[float, ...], rank: int) -> ScaleShift:
    return ScaleShift(
        torch.tensor(scale, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64), rank
    )
