"""A plan carried out on the graphs of torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from fxreduce.errors import PlanError
from fxreduce.operators.affine import ScaleShift
from fxreduce.passes.base import Pass
from fxreduce.passes.linearise import Linearise
from fxreduce.planning.fingerprint import Fingerprint, fingerprint, require_same

Fit = tuple[str, tuple[float, ...], tuple[float, ...], int]


@dataclass(frozen=True)
class PlannedRemoval:
    """Removes a plan's rectifiers from a graph of the architecture that it was made for.

    Attributes:
        sites: what is removed, in order.
        fits: name, scale, shift and rank of the affine maps that take the place of some.
        architecture: what a graph must be.
    """

    sites: tuple[str, ...]
    fits: tuple[Fit, ...]
    architecture: Fingerprint

    @classmethod
    def of(
        cls, sites: tuple[str, ...], maps: Mapping[str, ScaleShift], architecture: Fingerprint
    ) -> PlannedRemoval:
        fits = tuple(
            (name, tuple(fit.scale.tolist()), tuple(fit.shift.tolist()), fit.rank)
            for name, fit in maps.items()
        )
        return cls(sites, fits, architecture)

    def __call__(self, graph_module: GraphModule) -> tuple[Pass, ...]:
        """The passes that remove the sites; none, with a warning, from another architecture."""
        try:
            require_same(self.architecture, fingerprint(graph_module))
        except PlanError as error:
            message = f"a graph of torch.compile runs with all its rectifiers: {error}"
            warnings.warn(message, stacklevel=2)
            return ()
        maps = {
            name: ScaleShift(
                torch.tensor(scale, dtype=torch.float64),
                torch.tensor(shift, dtype=torch.float64),
                rank,
            )
            for name, scale, shift, rank in self.fits
        }
        return (Linearise(self.sites, maps),)
