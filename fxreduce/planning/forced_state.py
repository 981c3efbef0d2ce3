"""TLC's data-free importance: how often a rectifier is not in the state that it would be forced to.

Source: TLC (AAAI 2025). A batch-norm makes the pre-activation y ~ N(β, γ²) in each channel, from
whose β and γ it follows how often y leaves the state, ON or OFF, that it mostly has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxreduce.graph.batch_norms import BatchNormCall, read_batch_norm
from fxreduce.graph.rectifiers import Site, find_sites
from fxreduce.planning.measure import SiteStatistics
from fxreduce.planning.ranking import Rank, Stage

_RELU6_CLIPS_AT = 6.0


@dataclass(frozen=True)
class ForcedState:
    """The mean over channels of the error of forcing a state, read from the batch-norm.

    The batch-norm is the one whose output the rectifier reads. It is read as it is: removals before
    it change nothing, as TLC would train again after each.

    A site without one, behind a sum or in a network that normalises otherwise, ranks after all
    sites with one, in the order of the same error for the mean and the standard deviation that its
    pre-activation has on the calibration data, which TLC takes there. So a budget that asks for
    more than the batch-norms tell is served by the best that is known, and the report says for
    which sites.
    """

    moments: bool = True

    def rank(self, stage: Stage) -> Mapping[str, Rank]:
        ranks = {}
        for site in find_sites(stage.graph_module):
            if (statistics := stage.sites.get(site.name)) is None:
                continue
            mean, deviation, instead = normal(stage.graph_module, site, statistics)
            ranks[site.name] = Rank(_error(mean, deviation, statistics.kind), instead)
        return ranks


def normal(
    graph_module: GraphModule, site: Site, statistics: SiteStatistics
) -> tuple[Tensor, Tensor, str | None]:
    """Mean β and deviation γ, [C] each, of the pre-activation's normal distribution.

    They are those of the batch-norm that feeds the site; where there is none they are measured, and
    the third says why.
    """
    norm = read_batch_norm(graph_module, site.rectifier.input)
    if isinstance(norm, BatchNormCall):
        return *_affine(norm), None
    seen = "no batch-norm feeds it" if norm is None else norm.reason
    instead = (
        f"{seen}; instead of its β and γ the pre-activation's mean and standard deviation on the "
        "calibration data were taken"
    )
    return *_measured(statistics), instead


def forcing_error(mean: Tensor, deviation: Tensor, upper: float = inf) -> Tensor:
    """How often y ~ N(mean, deviation²) is not in the state that TLC forces on its channel.

    A channel of mean β > 0 is linearised, which is wrong where y < 0, and where y is above the
    bound u that the rectifier clips at: Φ(−β/γ) + Φ((β − u)/γ). Any other channel is removed, which
    is wrong where y > 0: Φ(β/γ). Without an upper bound that is Φ(−|β|/γ). For γ = 0, where y is
    always β, it is 0, or 1 for β > u.

    Args:
        mean: β, [C].
        deviation: γ, [C]; its sign does not matter.
        upper: u.

    Returns:
        float64 [C].
    """
    mean, deviation = mean.double(), deviation.double().abs()
    linear = _beyond(mean, deviation) + _beyond(upper - mean, deviation)
    return torch.where(mean > 0, linear, _beyond(-mean, deviation))


def _beyond(distance: Tensor, deviation: Tensor) -> Tensor:
    """How often N(0, deviation²) is larger than the distance: Φ(−distance/deviation)."""
    constant = deviation == 0
    normal = torch.special.ndtr(-distance / deviation.masked_fill(constant, 1))
    return torch.where(constant, (distance < 0).double(), normal)


def _error(mean: Tensor, deviation: Tensor, kind: str) -> float:
    upper = _RELU6_CLIPS_AT if kind == "relu6" else inf
    return float(forcing_error(mean, deviation, upper).mean()) if len(mean) else 0.0


def _affine(norm: BatchNormCall) -> tuple[Tensor, Tensor]:
    """β and γ; without them a batch-norm makes N(0, 1)."""
    beta = torch.zeros_like(norm.mean) if norm.bias is None else norm.bias
    gamma = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
    return beta.detach(), gamma.detach()


def _measured(site: SiteStatistics) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pre-activation on the calibration data, each [C]."""
    moments = site.statistics.required_moments()
    return moments.mean_z, (moments.m2_z / moments.count).sqrt()
