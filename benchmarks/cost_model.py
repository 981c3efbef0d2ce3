"""How well a cost model orders operators: its rank correlation with the time that they take.

    make bench-cost
    python -m benchmarks.cost_model --cases swin_t --cost flops --json figures.json

The operators are the affine ones of the cases of `fusion.py`, as they are without the rectifiers,
and merged. Each is timed alone, in turns with all others of its model, and Spearman's coefficient
is taken over the operators of a model, and over all. It is 1 where the cost model orders any two
operators as their times do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from statistics import correlation
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule

import fxreduce
from benchmarks import charts
from benchmarks.document import Table
from benchmarks.fusion import CASES, SIZE
from benchmarks.models import build, settle
from benchmarks.run import Run, parser_of
from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.latency import LatencyCost
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import on_meta
from fxreduce.operators.cost import Candidate, CostModel, as_cost, costs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    ("case", "{}", attrgetter("case")),
    ("operators", "{}", lambda each: len(each.costs)),
    ("rank correlation", "{:.3f}", attrgetter("coefficient")),
)


@dataclass(frozen=True)
class Rated:
    """What a cost model says of operators, and the microseconds they take."""

    case: str
    costs: tuple[float, ...]
    microseconds: tuple[float, ...]

    @property
    def coefficient(self) -> float:
        """Spearman's: the correlation of the ranks."""
        return correlation(ranks(self.costs), ranks(self.microseconds))


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in their order; equal ones share the mean of their places."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    place = 0
    for _, group in groupby(order, key=values.__getitem__):
        equal = list(group)
        for index in equal:
            found[index] = place + (len(equal) - 1) / 2
        place += len(equal)
    return found


def operators(graph_module: GraphModule) -> list[Candidate]:
    """The affine operators of a graph that knows its shapes, each with the input that it gets."""
    calls = (read_affine(graph_module, node) for node in graph_module.graph.nodes)
    return [
        (on_meta(each.operator), setting_of(each)) for each in calls if isinstance(each, AffineCall)
    ]


@torch.no_grad()
def rate(name: str, model: CostModel, rounds: int) -> Rated:
    """Rate and time the operators of a case, unmerged and merged."""
    case = CASES[name]
    original = build(case.model, SIZE)
    deleted = fxreduce.linearize(original, case.sites(original))
    settle(deleted, SIZE)
    images = torch.randn(case.batches[0], 3, SIZE, SIZE)
    graphs = (fxreduce.capture(deleted, images), fxreduce.fuse(deleted, example_inputs=images))
    candidates = [each for graph in graphs for each in operators(graph)]
    measured = LatencyCost(rounds=rounds, cache=None).costs(candidates)
    return Rated(name, tuple(costs(model, candidates)), tuple(measured))


def together(rated: Sequence[Rated]) -> Rated:
    """The operators of all cases as those of one."""
    return Rated(
        "all",
        tuple(cost for each in rated for cost in each.costs),
        tuple(time for each in rated for time in each.microseconds),
    )


def chart(rated: Sequence[Rated], cost: str) -> Figure:
    points = {each.case: list(zip(each.costs, each.microseconds, strict=True)) for each in rated}
    panels = {(f"cost by {cost}", "measured µs"): points}
    return charts.curves(panels, logarithmic=True, joined=False)


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--cost", default="flops", help="the cost model (flops)")
    parser.add_argument("--runs", type=int, default=15, help="runs to take medians of (15)")
    arguments = parser.parse_args(given)
    run = Run.begin("cost", __doc__, arguments)
    rated = [rate(name, as_cost(arguments.cost), arguments.runs) for name in arguments.cases]
    figures = [*rated, together(rated)]
    title = f"Costs by {arguments.cost} against measured times"
    run.end([Table.of(title, figures, COLUMNS)], chart=lambda: chart(rated, arguments.cost))


if __name__ == "__main__":
    main()
