"""The result of fxreduce.analyze: what every rectifier decides, and plans made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.graph.capture import capture_record
from fxreduce.operators.cost import CostModel
from fxreduce.planning.budgets import Budget
from fxreduce.planning.example import Example
from fxreduce.planning.measure import SiteStatistics
from fxreduce.planning.plan import Plan
from fxreduce.planning.planner import Options, make_plan
from fxreduce.planning.ranking import Importance, SiteImportance
from fxreduce.report.chart import entropy_chart
from fxreduce.report.table import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1


@dataclass(frozen=True)
class Analysis:
    """Entropies and moments of every site.

    Attributes:
        sites: in order of execution, each with `name`, `kind`, `entropy` (bits), and per channel
            `channel_entropy` and `on_probability` ([C]).
        entropy: the variant of the entropy.
        batches: how many batches were measured.
    """

    sites: tuple[SiteStatistics, ...]
    entropy: str
    batches: int
    graph_module: GraphModule = field(repr=False)
    calibration: Calibration = field(repr=False)
    example: Example = field(repr=False)
    axes: Mapping[str, int] = field(default_factory=dict, repr=False)

    def table(self) -> str:
        """The sites as a text table, in order of execution."""
        rows = []
        for site in self.sites:
            p = site.on_probability
            rows.append(
                (
                    site.name,
                    site.kind,
                    str(p.numel()),
                    f"{site.entropy:.4f}",
                    f"{float((p == 0).double().mean()):.1%}",
                    f"{float((p == 1).double().mean()):.1%}",
                )
            )
        header = ("site", "kind", "channels", "entropy (bits)", "always off", "always on")
        return table(header, rows, left=2)

    def plot(self) -> Figure:
        """The entropy of every site as a bar chart, in order of execution from the top.

        Returns:
            A matplotlib Figure: show it in a notebook, or write it with `savefig(path)`. It opens
            no window and is no part of pyplot's state.

        Raises:
            UnsupportedError: matplotlib is not installed.
        """
        return entropy_chart(
            [site.name for site in self.sites],
            [site.kind for site in self.sites],
            [site.entropy for site in self.sites],
            f"Entropy of the rectifiers in order of execution ({self.entropy} rule)",
        )

    def to_json(self) -> str:
        """The sites as JSON; `schema` numbers the layout."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "entropy": self.entropy,
                "batches": self.batches,
                "captured": capture_record(self.graph_module).rung,
                "sites": [
                    {
                        "name": site.name,
                        "kind": site.kind,
                        "entropy": site.entropy,
                        "channel_entropy": site.channel_entropy.tolist(),
                        "on_probability": site.on_probability.tolist(),
                    }
                    for site in self.sites
                ],
            },
            indent=2,
        )

    def plan(
        self,
        *,
        budget: int | float | str | Budget = "auto",
        importance: str | Importance | SiteImportance = "entropy",
        cost: str | CostModel = "flops",
        compensate: str = "refit",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        refit_scope: str = "downstream",
        candidates: str = "auto",
        exact: bool = False,
    ) -> Plan:
        """Choose the sites to remove, the best to remove first, measured again after each.

        Under torch.distributed every rank that has made the analysis calls it; see `analyze`.

        Args:
            budget: how many sites (int), which fraction of them (float), a Budget, or "auto",
                which is Fidelity(0.99). Budgets combine: `a & b` allows what both allow.
            importance: what orders the sites, the least goes first: "entropy" (EASIER);
                "residual", the share of the rectifier's output variance that the best affine map
                of each channel leaves unexplained; "sensitivity", the relative mean squared change
                of the model's output without the site; "batchnorm", how often a state that is
                forced on a channel is wrong by the β and γ of its batch-norm (TLC), sites without
                one last; or a function of a site's statistics.
            cost: which exact merges pay: "flops" or a cost model.
            compensate: what takes a rectifier's place: "identity"; "channel", the affine map of
                each channel that fits it best on the calibration data; or "refit", which also fits
                the weights of the merged model to what the original one computed.
            include, exclude: globs over site names.
            refit_scope: "merged" refits the operators in whose region a rectifier is removed,
                "downstream" all operators that read what these changed, too.
            candidates: "sites" removes one site after the other, the least important first;
                "regions" removes sites together that save more so, by `cost`: those first whose
                importance, added up, is least for what they save. "auto" takes regions with
                budgets that bound what removals cost or gain, and sites with those that count
                rectifiers or bound entropies, as the published methods do.
            exact: whether all merges are exact. Else "refit" with regions also fits one
                convolution in place of two padded ones, with a kernel no larger than theirs;
                `report` names these with the variance that they leave unexplained.

        Raises:
            PlanError: the budget, the importance or a glob does not fit the model.
            PlanInterrupted: by Ctrl-C, when something has been removed that the budget allows; the
                best plan so far is in it.
        """
        options = Options.of(
            budget,
            importance,
            cost,
            compensate,
            include,
            exclude,
            self.entropy,
            self.axes,
            refit_scope,
            candidates,
            exact,
        )
        with self.calibration.ranks.together():
            return make_plan(self.graph_module, self.calibration, self.example, options)
