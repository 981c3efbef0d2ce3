"""How the time of merging grows with the graph.

    make bench-scale
    python -m benchmarks.scale --kinds linear residual --sizes 100 1000 --json figures.json

Chains of small operators of several kinds are captured, and the merging passes alone are timed,
once each, with nothing checked. Growth is the time over that of the chain before, divided by what
n log n would give: 1 is n log n, and a quadratic pass shows 7 to 8 for ten times the operators. The
whole of `fxreduce.fuse` is timed on large models.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import fxreduce
from benchmarks import charts
from benchmarks.document import Table
from benchmarks.models import build
from benchmarks.run import Run, parser_of
from fxreduce.graph.count import count_affine
from fxreduce.operators.cost import as_cost
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.pipeline import PREPARE, fusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = (
    "Growth over that of n log n: at most 1, within what a noisy machine adds.",
    "The whole of fuse on resnet152 and swin_b: less than 10 s on two cores.",
)
MODELS = ("resnet152", "swin_b")


class Residual(nn.Module):
    """A branch of two operators and the skip, added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.norm(self.conv(x))
        return branch + x


def linear(operators: int) -> list[nn.Module]:
    """Widths take turns, so that every second value is narrow."""
    return [nn.Linear(8 + 8 * (i % 2), 16 - 8 * (i % 2)) for i in range(operators)]


def pointwise(operators: int) -> list[nn.Module]:
    """Pairs of a 1x1 convolution and its batch-norm, all of which merge."""
    return [nn.BatchNorm2d(4) if i % 2 else nn.Conv2d(4, 4, 1) for i in range(operators)]


def padded(operators: int) -> list[nn.Module]:
    """Padded 3x3 convolutions, which merge in pairs at most, with a correction at the border."""
    return [nn.Conv2d(4, 4, 3, padding=1) for _ in range(operators)]


def residual(operators: int) -> list[nn.Module]:
    """Residual blocks, each of which becomes one convolution, with nothing between them."""
    return [Residual() for _ in range(operators // 2)]


def activated(operators: int) -> list[nn.Module]:
    """Residual blocks with a rectifier behind each."""
    return [module for _ in range(operators // 2) for module in (Residual(), nn.ReLU())]


KINDS: dict[str, Callable[[int], list[nn.Module]]] = {
    each.__name__: each for each in (linear, pointwise, padded, residual, activated)
}


@dataclass(frozen=True)
class Chain:
    """The seconds that the merging passes took on a chain of operators, and what was left of it."""

    kind: str
    operators: int
    left: int
    seconds: float


@dataclass(frozen=True)
class Whole:
    """The seconds that `fxreduce.fuse` took on a model, shapes unknown and nothing checked."""

    model: str
    operators: int
    left: int
    seconds: float


def measure_chain(kind: str, operators: int) -> Chain:
    torch.manual_seed(0)
    captured = fxreduce.capture(nn.Sequential(*KINDS[kind](operators)).eval())
    prepared = run_pipeline(captured, PREPARE).graph_module
    pipeline = fusion(as_cost("flops"))
    start = time.perf_counter()
    merged = run_pipeline(prepared, pipeline).graph_module
    seconds = time.perf_counter() - start
    return Chain(kind, operators, count_affine(merged).operators, seconds)


def measure_model(name: str) -> Whole:
    model = build(name, 64)
    start = time.perf_counter()
    report = fxreduce.report(fxreduce.fuse(model))
    seconds = time.perf_counter() - start
    return Whole(name, report.operators_before, report.operators_after, seconds)


def measure_chains(kind: str, sizes: Sequence[int], limit: float) -> list[Chain]:
    """The chains of a kind, as long as the next one is not expected to take longer than `limit`.

    It is expected to grow as it did last, or by the square of the size.
    """
    chains: list[Chain] = []
    for size in sizes:
        if chains and chains[-1].seconds * _power(chains, size) > limit:
            break
        chains.append(measure_chain(kind, size))
        print(f"{kind}, {size:,} operators: {chains[-1].seconds:.2f} s", file=sys.stderr)
    return chains


def _power(chains: Sequence[Chain], size: int) -> float:
    """How many times the last chain's seconds one of `size` operators is expected to take."""
    exponent = 2.0
    if len(chains) > 1:
        before, last = chains[-2:]
        grown = math.log(last.seconds / before.seconds)
        exponent = grown / math.log(last.operators / before.operators)
    return float((size / chains[-1].operators) ** exponent)


def growth(before: Chain, after: Chain) -> float:
    """The growth of the time over that of n log n."""
    loads = [each.operators * math.log(each.operators) for each in (before, after)]
    return (after.seconds / before.seconds) / (loads[1] / loads[0])


COUNTS = (
    ("operators", "{:,}", attrgetter("operators")),
    ("merged", "{:,}", attrgetter("left")),
    ("seconds", "{:.2f}", attrgetter("seconds")),
)


def tables(chains: Sequence[Chain], models: Sequence[Whole]) -> list[Table]:
    """The chains with the growth from one to the next, and the models."""
    grown = {
        after: growth(before, after)
        for before, after in pairwise(chains)
        if before.kind == after.kind
    }
    growing = ("growth / n log n", "{:.2f}", grown.get)
    merging = [("chain", "{}", attrgetter("kind")), *COUNTS, growing]
    fusing = [("model", "{}", attrgetter("model")), *COUNTS]
    found = [Table.of("Merging passes alone, on chains", chains, merging)]
    if models:
        found.append(Table.of("The whole of fxreduce.fuse", models, fusing))
    return found


def chart(chains: Sequence[Chain]) -> Figure:
    kinds = dict.fromkeys(each.kind for each in chains)
    points = {
        kind: [(each.operators, each.seconds) for each in chains if each.kind == kind]
        for kind in kinds
    }
    first = min(chains, key=attrgetter("operators", "seconds"))
    last = max(each.operators for each in chains)
    unit = first.seconds / (first.operators * math.log(first.operators))
    points["n log n"] = [(n, unit * n * math.log(n)) for n in (first.operators, last)]
    panels = {("operators", "seconds"): points}
    return charts.curves(panels, logarithmic=True, dashed="n log n")


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000, 10000], metavar="N")
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument(
        "--limit", type=float, default=120, help="leave out chains expected to take more s (120)"
    )
    arguments = parser.parse_args(given)
    run = Run.begin("scale", __doc__, arguments)
    chains = [
        chain
        for kind in arguments.kinds
        for chain in measure_chains(kind, sorted(arguments.sizes), arguments.limit)
    ]
    models = [measure_model(name) for name in arguments.models]
    run.end(tables(chains, models), BARS, lambda: chart(chains))


if __name__ == "__main__":
    main()
