"""What exact merging gains over deleting rectifiers and folding batch-norms.

    make bench-fusion
    python -m benchmarks.fusion --cases mobilenet_v2 swin_t --no-inductor --json figures.json

Three modules take turns in one process, and the figures are medians: the original model; the model
without its rectifiers, unmerged but with batch-norms folded by
`torch.fx.experimental.optimization.fuse`; and ours, the same merged by `fxreduce.fuse`. Where it is
plain what merges, the model merged by hand takes its turn, too: with one operator of random weights
for each block, and nothing at borders, it bounds what merging can gain on this machine. Then all of
them again, compiled by inductor with constants frozen. The deviation is that of the merged model
from the model without its rectifiers, both in float64, relative to the largest output.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._inductor import config
from torch.fx import GraphModule
from torch.fx.experimental import optimization

import fxreduce
from benchmarks import by_hand, charts
from benchmarks.document import Table
from benchmarks.models import build, settle
from benchmarks.run import Run, parser_of
from fxreduce.graph.compare import difference, tolerance
from fxreduce.timing import median_latencies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 224
BARS = (
    "÷ folded, mobilenet_v2: at least 3.5 in eager mode and 1.9 under inductor.",
    "÷ folded under inductor: at least 1.9 on vit_small and 1.5 on swin_t.",
    "÷ folded, vgg16_bn-classifier: at least 1.05; resnet18 and resnet50: at least 0.98.",
    "Deviation in float64: at most 1e-9.",
)


@dataclass(frozen=True)
class Case:
    """A model and the rectifiers to delete: those that match `delete`, save those in `keep`.

    `by_hand` makes of the model what it is without them, merged.
    """

    model: str
    delete: tuple[str, ...]
    keep: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    by_hand: Callable[[nn.Module], nn.Module] | None = None

    def sites(self, model: nn.Module) -> list[str]:
        """The names of the rectifiers to delete."""
        names = [site.name for site in fxreduce.report(fxreduce.fuse(model)).sites]
        return [
            name for name in names if _matches(name, self.delete) and not _matches(name, self.keep)
        ]


CASES = {
    # Both rectifiers of each block that expands; block 1 does not.
    "mobilenet_v2": Case(
        "mobilenet_v2",
        ("features.*.conv.*",),
        ("features.1.*",),
        (1, 8),
        by_hand.inverted_residuals,
    ),
    "vit_small": Case(
        "timm:vit_small_patch16_224", ("*",), batches=(4,), by_hand=by_hand.perceptrons
    ),
    "swin_t": Case("swin_t", ("*",), batches=(4,), by_hand=by_hand.perceptrons),
    "vgg16_bn-classifier": Case("vgg16_bn", ("classifier.*",)),
    "vgg16_bn-stem": Case("vgg16_bn", ("features.2", "features.5")),
    # All but the one behind each addition, and but the stem's.
    "resnet18": Case("resnet18", ("layer*",), ("*#1",), batches=(1, 8)),
    "resnet50": Case("resnet50", ("layer*",), ("*#2",), batches=(1, 8)),
}


@dataclass(frozen=True)
class Times:
    """Median milliseconds of a forward."""

    original: float
    folded: float
    ours: float
    by_hand: float | None = None


@dataclass(frozen=True)
class Figures:
    """What was measured of one case at one batch size.

    Attributes:
        deleted: how many rectifiers were deleted.
        operators_before, operators_after: affine operators of the model without its rectifiers,
            and of the merged one.
        deviation: see the module.
        eager: times as PyTorch runs the graphs.
        inductor: times compiled, or None where that was not asked for.
    """

    case: str
    batch: int
    deleted: int
    operators_before: int
    operators_after: int
    deviation: float
    eager: Times
    inductor: Times | None


@torch.no_grad()
def measure(name: str, arguments: argparse.Namespace) -> Iterator[Figures]:
    """The figures of a case, for each of its batch sizes.

    The model without its rectifiers gets batch-norm statistics of its own, as retraining would
    give it; with those of the original its values would explode, and saturate what follows.
    """
    case = CASES[name]
    model = build(case.model, SIZE)
    sites = case.sites(model)
    deleted = fxreduce.linearize(model, sites)
    settle(deleted, SIZE)
    apart = deviation(deleted, arguments.cost)
    for batch in case.batches:
        images = torch.randn(batch, 3, SIZE, SIZE)
        ours = fxreduce.fuse(deleted, arguments.cost, example_inputs=images)
        modules = [model, fold(deleted, images), ours]
        if case.by_hand is not None:
            modules.append(case.by_hand(model))
        report = fxreduce.report(ours)
        yield Figures(
            name,
            batch,
            len(sites),
            report.operators_before,
            report.operators_after,
            apart,
            Times(*milliseconds(modules, images, arguments.runs)),
            None if arguments.no_inductor else compiled_times(modules, images, arguments.runs),
        )


def fold(deleted: GraphModule, images: Tensor) -> GraphModule:
    """The graph with batch-norms folded by PyTorch's own pass.

    Raises:
        EquivalenceError: that pass changed what the graph computes.
    """
    folded = optimization.fuse(deleted, no_trace=True).eval()
    apart = difference(deleted(images), folded(images)).max_rel
    if apart > tolerance(torch.float32):
        raise fxreduce.EquivalenceError(f"PyTorch's folding changed the output by {apart:.0e}")
    return folded


def deviation(deleted: GraphModule, cost: str) -> float:
    """How far the merged graph is from the unmerged one, in float64 on images of its own."""
    precise, images = copy.deepcopy(deleted).double(), torch.randn(1, 3, SIZE, SIZE).double()
    merged = fxreduce.fuse(precise, cost, example_inputs=images)
    other = torch.randn_like(images)
    return difference(precise(other), merged(other)).max_rel


def compiled_times(modules: Sequence[nn.Module], images: Tensor, runs: int) -> Times:
    """Times of the modules compiled for these shapes, with constants frozen."""
    torch.compiler.reset()
    with config.patch(freezing=True):
        compiled = [torch.compile(module, dynamic=False) for module in modules]
        times = milliseconds(compiled, images, runs)
    torch.compiler.reset()
    return Times(*times)


def milliseconds(
    modules: Sequence[Callable[..., object]], images: Tensor, runs: int
) -> list[float]:
    calls = [partial(module, images) for module in modules]
    return [1e3 * each for each in median_latencies(calls, images.device, rounds=runs)]


COLUMNS = (
    ("case", "{}", attrgetter("case")),
    ("batch", "{}", attrgetter("batch")),
    ("deleted", "{}", attrgetter("deleted")),
    ("operators", "{}", attrgetter("operators_before")),
    ("merged", "{}", attrgetter("operators_after")),
    ("deviation", "{:.0e}", attrgetter("deviation")),
)


def columns(mode: str) -> list[tuple[str, str, Callable[[Figures], float | None]]]:
    """Those of the times in a mode; ratios above one say how much faster ours is."""

    def taken(of: Callable[[Times], float | None]) -> Callable[[Figures], float | None]:
        return lambda each: of(getattr(each, mode))

    return [
        ("original ms", "{:.1f}", taken(attrgetter("original"))),
        ("folded ms", "{:.1f}", taken(attrgetter("folded"))),
        ("ours ms", "{:.1f}", taken(attrgetter("ours"))),
        ("÷ original", "{:.2f}x", taken(lambda times: times.original / times.ours)),
        ("÷ folded", "{:.2f}x", taken(lambda times: times.folded / times.ours)),
        ("÷ by hand", "{:.2f}x", taken(lambda times: times.by_hand and times.by_hand / times.ours)),
    ]


def tables(figures: Sequence[Figures]) -> list[Table]:
    """A table for each mode that was measured."""
    titles = {"eager": "As PyTorch runs the graphs", "inductor": "Compiled by inductor, frozen"}
    return [
        Table.of(title, figures, (*COLUMNS, *columns(mode)))
        for mode, title in titles.items()
        if all(getattr(each, mode) is not None for each in figures)
    ]


def chart(figures: Sequence[Figures]) -> Figure:
    series = {
        mode: [times and times.folded / times.ours for times in map(attrgetter(mode), figures)]
        for mode in ("eager", "inductor")
        if any(getattr(each, mode) is not None for each in figures)
    }
    labels = [f"{each.case}, batch {each.batch}" for each in figures]
    return charts.ratios(labels, series, "times as fast as the unmerged model, batch-norms folded")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE",
        help=f"of {', '.join(CASES)} (all)",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=15, help="runs to take medians of (15)")
    parser.add_argument("--cost", default="flops", help="which merges pay (flops)")
    parser.add_argument("--no-inductor", action="store_true", help="leave compiled models out")
    arguments = parser.parse_args(given)
    run = Run.begin("fusion", __doc__, arguments)
    figures = []
    for name in arguments.cases:
        for each in measure(name, arguments):
            print(f"{each.case}, batch {each.batch}: done", file=sys.stderr)
            figures.append(each)
        gc.collect()  # graphs hold themselves, and their weights
    run.end(tables(figures), BARS, lambda: chart(figures))


if __name__ == "__main__":
    main()
