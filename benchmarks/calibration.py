"""What calibration costs: a forward with observers at every rectifier, over the plain forward.

    make bench-calibration
    python -m benchmarks.calibration --batch 8 --models resnet18 mobilenet_v2 --json figures.json

Time: plain, observed for entropies, and observed for entropies and moments take turns, and the
ratio is that of the medians. An observed forward includes the check for values that are not
finite. Memory: each of the three runs in processes of its own, and the ratio is that of the medians
of their highest resident set sizes during the forwards, weights and libraries included.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import GraphModule

import fxreduce
from benchmarks import charts
from benchmarks.document import Table
from benchmarks.models import build
from benchmarks.run import Run, parser_of, printed_alone
from fxreduce.calibration.observer import require_finite
from fxreduce.passes.observe import Observe, observers

MODELS = ("resnet18", "vgg16_bn", "mobilenet_v2")
KINDS = ("plain", "entropy", "moments")
if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = (
    "Seconds over the plain forward's: at most 1.20 for entropies, 1.45 with moments.",
    "Peak memory over the plain forward's: at most 1.05.",
)
Forward = Callable[[], object]


@dataclass(frozen=True)
class Figures:
    """What was measured of one model; ratios are over the plain forward.

    Attributes:
        plain_ms: median milliseconds of a plain forward.
        fastest_plain_ms: milliseconds of the fastest one.
        entropy: ratio of the median seconds, observed for entropies.
        moments: ratio of the median seconds, observed for entropies and moments.
        fastest_entropy: ratio of the fastest forwards.
        fastest_moments: ratio of the fastest forwards.
        plain_mib: peak memory of plain forwards.
        entropy_memory: ratio of the peaks.
        moments_memory: ratio of the peaks.
    """

    model: str
    plain_ms: float
    fastest_plain_ms: float
    entropy: float
    moments: float
    fastest_entropy: float
    fastest_moments: float
    plain_mib: float
    entropy_memory: float
    moments_memory: float


def forward_of(kind: str, captured: GraphModule, images: Tensor) -> Forward:
    """A forward of the captured model, plain or with observers."""
    if kind == "plain":
        return lambda: captured(images)
    module = Observe(moments=kind == "moments").run(captured).graph_module
    watching = observers(module)

    def observed() -> None:
        module(images)
        require_finite(watching, 0)

    return observed


def seconds(forwards: Sequence[Forward], runs: int) -> list[list[float]]:
    """The seconds of each forward, taken in turns."""
    taken: list[list[float]] = [[] for _ in forwards]
    for run in range(runs + 1):
        for forward, times in zip(forwards, taken, strict=True):
            start = time.perf_counter()
            forward()
            if run:  # the first round warms up
                times.append(time.perf_counter() - start)
    return taken


@torch.no_grad()
def peak_bytes(kind: str, name: str, batch: int, size: int) -> int:
    """The highest resident set size of this process during two forwards."""
    model, images = build(name, size), torch.randn(batch, 3, size, size)
    forward = forward_of(kind, fxreduce.capture(model, images[:1]), images)
    del model
    gc.collect()
    reset = _reset_peak()
    for _ in range(2):
        forward()
    if not reset:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM:"))) * 1024


def _reset_peak() -> bool:
    """Whether the kernel let go of the peak so far, that of building and capturing the model."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_in_process(kind: str, name: str, arguments: argparse.Namespace) -> int:
    """`peak_bytes`, the median of several processes, which map memory differently."""
    given = ("--peak", kind, "--models", name)
    given += ("--batch", arguments.batch, "--size", arguments.size)
    outputs = (printed_alone(__file__, *given) for _ in range(arguments.processes))
    return median(int(output.split()[-1]) for output in outputs)


@torch.no_grad()
def measure(name: str, arguments: argparse.Namespace) -> Figures:
    model = build(name, arguments.size)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    captured = fxreduce.capture(model, images[:1])
    forwards: list[Forward] = [lambda: model(images)]
    forwards += [forward_of(kind, captured, images) for kind in KINDS[1:]]
    taken = seconds(forwards, arguments.runs)
    plain, entropy, moments = (median(times) for times in taken)
    fastest = [min(times) for times in taken]
    peaks = [peak_in_process(kind, name, arguments) for kind in KINDS]
    return Figures(
        name,
        plain * 1e3,
        fastest[0] * 1e3,
        entropy / plain,
        moments / plain,
        fastest[1] / fastest[0],
        fastest[2] / fastest[0],
        peaks[0] / 2**20,
        peaks[1] / peaks[0],
        peaks[2] / peaks[0],
    )


COLUMNS = (
    ("model", "{}", attrgetter("model")),
    ("plain ms", "{:.1f}", attrgetter("plain_ms")),
    ("entropy", "{:.3f}", attrgetter("entropy")),
    ("with moments", "{:.3f}", attrgetter("moments")),
    ("entropy, fastest", "{:.3f}", attrgetter("fastest_entropy")),
    ("with moments, fastest", "{:.3f}", attrgetter("fastest_moments")),
    ("plain MiB", "{:.0f}", attrgetter("plain_mib")),
    ("entropy, memory", "{:.3f}", attrgetter("entropy_memory")),
    ("with moments, memory", "{:.3f}", attrgetter("moments_memory")),
)


def chart(figures: Sequence[Figures]) -> Figure:
    series = {
        "entropy": [each.entropy for each in figures],
        "with moments": [each.moments for each in figures],
    }
    return charts.ratios([each.model for each in figures], series, "seconds over plain forward's")


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch (8)")
    parser.add_argument("--size", type=int, default=224, help="their pixels a side (224)")
    parser.add_argument("--runs", type=int, default=7, help="runs to take medians of (7)")
    parser.add_argument(
        "--processes", type=int, default=3, help="of which memory is the median; odd (3)"
    )
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.peak:
        print(peak_bytes(arguments.peak, arguments.models[0], arguments.batch, arguments.size))
        return
    run = Run.begin("calibration", __doc__, arguments)
    figures = [measure(name, arguments) for name in arguments.models]
    table = Table.of("Forwards that are observed, over the plain one", figures, COLUMNS)
    run.end([table], BARS, lambda: chart(figures))


if __name__ == "__main__":
    main()
