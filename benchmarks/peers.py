"""What others make of the same models: torch.fx's fusion, inductor and onnxruntime beside ours.

    make bench-peers
    python -m benchmarks.peers --cases mobilenet_v2 --untouched resnet50 --json figures.json

The models are those of `fusion.py`, without their rectifiers, and some as they are, where there is
little to merge beyond batch-norms. Three runtimes, and in each the peer's own optimiser against
ours before it: PyTorch as it is, where the peer is `torch.fx.experimental.optimization.fuse`;
inductor with constants frozen; and onnxruntime with all of its graph optimisations, on ONNX files
that one exporter wrote, with as many threads as PyTorch has. All of them take turns in one process,
and the figures are medians. Deviations are those of the float32 outputs from the unmerged model's
in float64, relative to the largest; that of the unmerged model itself is what rounding alone does.
"""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._inductor import config
from torch.fx import GraphModule

import fxreduce
from benchmarks import charts
from benchmarks.document import Table
from benchmarks.fusion import CASES, SIZE, fold
from benchmarks.models import build, settle
from benchmarks.run import Run, parser_of
from fxreduce.errors import first_line
from fxreduce.extras import required
from fxreduce.graph.compare import difference
from fxreduce.saving.exports import Batch, write_onnx
from fxreduce.timing import median_latencies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = (1, 4)
UNTOUCHED = ("resnet50", "mobilenet_v2")
Forward = Callable[[], Any]
Way = tuple[str, str]  # the runtime, and who merged: "none", "peer" or "ours"
# Under inductor and onnxruntime the peer is the runtime itself, given the unmerged model.
PEERS = {
    "eager": "torch.fx fuse",
    "inductor": "inductor, frozen",
    "onnxruntime": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True)
class Figures:
    """A model in one runtime.

    Attributes:
        peer_ms, ours_ms: median milliseconds of a forward; None where there is none.
        rounding: deviation of the unmerged model as PyTorch runs it.
        peer_deviation, ours_deviation: of each.
        note: why there is no figure.
    """

    case: str
    batch: int
    runtime: str
    peer_ms: float | None
    ours_ms: float | None
    rounding: float
    peer_deviation: float | None
    ours_deviation: float | None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is; below one the peer wins."""
        return self.peer_ms / self.ours_ms if self.peer_ms and self.ours_ms else None


def measure(case: str, model: GraphModule, images: Tensor, runs: int) -> Iterator[Figures]:
    """The figures of an unmerged model in every runtime."""
    forwards, notes = ways(model, images)
    expected = copy.deepcopy(model).double()(images.double())
    apart = {way: deviation(expected, forward()) for way, forward in forwards.items()}
    rounding = deviation(expected, model(images))
    seconds = median_latencies(list(forwards.values()), images.device, rounds=runs)
    taken = {way: 1e3 * each for way, each in zip(forwards, seconds, strict=True)}
    for runtime in PEERS:
        peer, ours = (runtime, "peer"), (runtime, "ours")
        yield Figures(
            case,
            len(images),
            runtime,
            taken.get(peer),
            taken.get(ours),
            rounding,
            apart.get(peer),
            apart.get(ours),
            "; ".join(notes[way] for way in (peer, ours) if way in notes),
        )


def ways(model: GraphModule, images: Tensor) -> tuple[dict[Way, Forward], dict[Way, str]]:
    """A forward of each way that there is, and for the others the reason why not."""
    ours = fxreduce.fuse(model, example_inputs=images)
    makers: dict[Way, Callable[[], Forward]] = {
        ("eager", "peer"): lambda: partial(fold(model, images), images),
        ("eager", "ours"): lambda: partial(ours, images),
        ("inductor", "peer"): lambda: compiled(model, images),
        ("inductor", "ours"): lambda: compiled(ours, images),
        ("onnxruntime", "peer"): lambda: onnx_forward(model, images),
        ("onnxruntime", "ours"): lambda: onnx_forward(ours, images),
    }
    forwards, notes = {}, {}
    for way, make in makers.items():
        try:
            forwards[way] = make()
            forwards[way]()
        except Exception as error:  # whatever a library says of a model is its row
            forwards.pop(way, None)
            notes[way] = f"{' '.join(way)}: {first_line(error)[:200]}"
    return forwards, notes


def compiled(model: GraphModule, images: Tensor) -> Forward:
    """The model compiled for these shapes, with constants frozen."""
    call = partial(torch.compile(model, dynamic=False), images)
    with config.patch(freezing=True), torch.no_grad():
        call()
    return call


def onnx_forward(model: GraphModule, images: Tensor) -> Forward:
    """The model in onnxruntime with all optimisations, on as many threads as torch has."""
    onnxruntime = required("onnxruntime", "an ONNX session", "export")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would spin on after a run, and slow down whoever is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model, path, Batch.given(images, None))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    fed = {name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, fed)[0])


def deviation(expected: Tensor, seen: Tensor) -> float:
    return difference(expected, seen.double()).max_rel


def subjects(arguments: Any) -> Iterator[tuple[str, GraphModule]]:
    """The models by name, captured, none of them merged."""
    for name in arguments.cases:
        case = CASES[name]
        model = build(case.model, SIZE)
        deleted = fxreduce.linearize(model, case.sites(model))
        settle(deleted, SIZE)
        yield name, deleted
    for name in arguments.untouched:
        yield f"{name} as it is", fxreduce.capture(build(name, SIZE))


COLUMNS = (
    ("case", "{}", attrgetter("case")),
    ("batch", "{}", attrgetter("batch")),
    ("peer", "{}", lambda each: PEERS[each.runtime]),
    ("peer ms", "{:.1f}", attrgetter("peer_ms")),
    ("ours ms", "{:.1f}", attrgetter("ours_ms")),
    ("÷ peer", "{:.2f}x", attrgetter("ratio")),
    ("rounding", "{:.0e}", attrgetter("rounding")),
    ("peer deviation", "{:.0e}", attrgetter("peer_deviation")),
    ("ours", "{:.0e}", attrgetter("ours_deviation")),
)
NOTES = (
    ("case", "{}", attrgetter("case")),
    ("peer", "{}", lambda each: PEERS[each.runtime]),
    ("reason", "{}", attrgetter("note")),
)


def tables(figures: Sequence[Figures]) -> list[Table]:
    """The figures, and why some are missing."""
    found = [Table.of("Ours before each peer's runtime; below one the peer wins", figures, COLUMNS)]
    if missing := [each for each in figures if each.note]:
        found.append(Table.of("Not measured, and why", missing, NOTES))
    return found


def chart(figures: Sequence[Figures]) -> Figure:
    groups = list(dict.fromkeys((each.case, each.batch) for each in figures))
    known = {(each.case, each.batch, each.runtime): each.ratio for each in figures}
    series = {
        f"against {peer}": [known.get((*group, runtime)) for group in groups]
        for runtime, peer in PEERS.items()
    }
    labels = [f"{case}, batch {batch}" for case, batch in groups]
    return charts.ratios(labels, series, "times as fast as the peer")


@torch.no_grad()
def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--untouched", nargs="*", default=list(UNTOUCHED), metavar="MODEL")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="(1 4)")
    parser.add_argument("--runs", type=int, default=15, help="runs to take medians of (15)")
    arguments = parser.parse_args(given)
    run, figures = Run.begin("peers", __doc__, arguments), []
    for name, model in subjects(arguments):
        for batch in arguments.batches:
            images = torch.randn(batch, 3, SIZE, SIZE)
            figures += measure(name, model, images, arguments.runs)
            print(f"{name}, batch {batch}: done", file=sys.stderr)
            torch.compiler.reset()
            gc.collect()  # graphs hold themselves, and their weights
    run.end(tables(figures), chart=lambda: chart(figures))


if __name__ == "__main__":
    main()
