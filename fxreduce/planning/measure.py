"""Measuring the sites of a graph over calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.calibration.observer import require_finite
from fxreduce.calibration.ranks import over_ranks
from fxreduce.calibration.statistics import ChannelStatistics
from fxreduce.errors import CalibrationError
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.state import kept_state
from fxreduce.operators.affine import ScaleShift
from fxreduce.passes.observe import Observe, observers


@dataclass(frozen=True)
class SiteStatistics:
    """What calibration found at one site.

    Attributes:
        name: the site's name.
        kind: the rectifier's kind.
        entropy: mean over channels of `channel_entropy`, in bits.
        channel_entropy: [C], in bits, of the state ON (pre-activation > 0) or OFF.
        on_probability: [C], how often a non-zero pre-activation is positive.
        channel_axis: the axis of the C channels, counted from the right.
        statistics: the counts and moments themselves.
    """

    name: str
    kind: str
    entropy: float
    channel_entropy: Tensor
    on_probability: Tensor
    channel_axis: int
    statistics: ChannelStatistics = field(repr=False)

    @classmethod
    def of(
        cls, name: str, kind: str, channel_axis: int, statistics: ChannelStatistics, entropy: str
    ) -> SiteStatistics:
        """What the statistics say of a site, by a variant of the entropy."""
        return cls(
            name=name,
            kind=kind,
            entropy=statistics.entropy(entropy),
            channel_entropy=statistics.channel_entropy(entropy),
            on_probability=statistics.on_probability,
            channel_axis=channel_axis,
            statistics=statistics,
        )

    def affine_fit(self) -> ScaleShift:
        """The affine map of each channel that fits the rectifier best, by least squares."""
        scale, shift = self.statistics.affine_fit()
        return ScaleShift(scale, shift, -self.channel_axis - 1)


@dataclass(frozen=True)
class Measurement:
    """The statistics of sites, by name in order of execution, and how many batches gave them."""

    sites: Mapping[str, SiteStatistics]
    batches: int


def measure(
    graph_module: GraphModule,
    calibration: Calibration,
    *,
    entropy: str,
    moments: bool,
    sites: Sequence[str] | None = None,
    axes: Mapping[str, int] | None = None,
) -> Measurement:
    """Observe the sites of a graph over all batches of all ranks, in one pass.

    Raises:
        CalibrationError: no batch, one that the model does not run on, or values that are not
            finite; batch and site are named.
    """
    observed = Observe(moments, None if sites is None else tuple(sites), axes or {})
    module = observed.run(graph_module).graph_module
    watching = observers(module)
    count = 0
    with kept_state(module):
        for number, batch in calibration.batches("measuring entropy"):
            calibration.run(module, number, batch)
            require_finite(watching, number)
            count += 1
    kinds = {site.name: site.rectifier.kind for site in find_sites(graph_module)}
    ranks = calibration.ranks
    own = {each.site: each.statistics for each in watching if each.has_seen}
    merged = of_all_ranks(own, [each.site for each in watching], calibration)
    found = {
        each.site: SiteStatistics.of(
            each.site,
            kinds[each.site],
            each.channel_axis,
            merged[each.site],
            entropy,
        )
        for each in watching
    }
    return Measurement(found, sum(ranks.all("counting batches", count)))


def of_all_ranks(
    own: Mapping[str, ChannelStatistics], sites: Sequence[str], calibration: Calibration
) -> dict[str, ChannelStatistics]:
    """The statistics of sites over the batches of all ranks, from what this one has seen.

    Raises:
        CalibrationError: no rank has seen values of a site.
    """
    merged = over_ranks(own, calibration.ranks, calibration.device)
    if unseen := [site for site in sites if site not in merged]:
        raise CalibrationError(f"{unseen[0]} has seen no values; calibrate with other batches")
    return merged
