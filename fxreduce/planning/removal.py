"""A plan carried out on the graphs of torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule

from fxreduce.dynamo.reduction import Reduction
from fxreduce.errors import PlanError
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.operators.affine import ScaleShift
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.refit import Refit
from fxreduce.planning.fingerprint import (
    Fingerprint,
    digest,
    digest_of,
    fingerprint,
    require_same,
)

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
        replaced: whether the fitted weights make up for the maps.
        refit: sets the fitted weights.
    """

    sites: tuple[str, ...]
    maps: tuple[Fit, ...]
    architecture: Fingerprint
    fitted_to: str = ""
    fitted: str = ""
    replaced: bool = False
    refit: Refit = field(default_factory=Refit, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        sites: tuple[str, ...],
        maps: Mapping[str, ScaleShift],
        architecture: Fingerprint,
        *,
        fitted_to: str = "",
        replaced: bool = False,
        refit: Refit | None = None,
    ) -> PlannedRemoval:
        fits = tuple(
            (name, tuple(fit.scale.tolist()), tuple(fit.shift.tolist()), fit.rank)
            for name, fit in maps.items()
        )
        refit = refit or Refit()
        fitted = digest_of(refit.weights.items())
        return cls(sites, fits, architecture, fitted_to, fitted, replaced, refit)

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
        plain = Linearise(self.sites, maps)
        if not self.refit.weights:
            return (Reduction((plain,)),)
        if digest(graph_module) != self.fitted_to:
            refusal = RefusedRewrite("the whole graph", NOT_FITTED, Refit.name)
            warnings.warn(f"in a graph of torch.compile {NOT_FITTED}", stacklevel=2)
            return (Reduction((plain,), refusals=(refusal,)),)
        fitted = Linearise(self.sites) if self.replaced else plain
        return (Reduction((fitted,), (self.refit,)), Reduction((plain,)))


def _map(scale: tuple[float, ...], shift: tuple[float, ...], rank: int) -> ScaleShift:
    return ScaleShift(
        torch.tensor(scale, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64), rank
    )
