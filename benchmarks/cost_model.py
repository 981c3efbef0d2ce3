"""How well a cost model orders operators: its rank correlation with the time that they take.

    make bench-cost
    python benchmarks/cost_model.py --cases swin_t --cost flops --json figures.json

The operators are the affine ones of the cases of `fusion.py`, as they are without the rectifiers,
and merged. Each is timed alone, in turns with all others of its model, and Spearman's coefficient
is taken over the operators of a model, and over all. It is 1 where the cost model orders any two
operators as their times do.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import correlation

import torch
from fusion import CASES, SIZE
from models import build, settle
from torch.fx import GraphModule

import fxreduce
from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.latency import LatencyCost
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import on_meta
from fxreduce.operators.cost import Candidate, CostModel, as_cost, costs
from fxreduce.report.table import table


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


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--cost", default="flops", help="the cost model (flops)")
    parser.add_argument("--runs", type=int, default=15, help="runs to take medians of (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args(given)
    rated = [rate(name, as_cost(arguments.cost), arguments.runs) for name in arguments.cases]
    figures = [*rated, together(rated)]
    print(
        f"cost {arguments.cost}, {SIZE} pixels, {arguments.runs} runs, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    cells = [(each.case, str(len(each.costs)), f"{each.coefficient:.3f}") for each in figures]
    print(table(("case", "operators", "rank correlation"), cells))
    if arguments.json:
        document = {"cost": arguments.cost, "size": SIZE, "runs": arguments.runs}
        document |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        document |= {
            "cases": {
                each.case: {"operators": len(each.costs), "coefficient": each.coefficient}
                for each in figures
            }
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
