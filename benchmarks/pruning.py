"""Fewer channels or fewer rectifiers: Torch-Pruning and our planner, equally fast, untrained.

    make bench-pruning
    python -m benchmarks.pruning --networks resnet18 --seeds 0 --json figures.json

The networks are those of the frontier. Ours is what the planner reaches within one point of
accuracy on validation images, or at a given share of the rectifiers. Theirs are pruned by
Torch-Pruning, every layer by the same share and the classifier left alone, by as little as makes
them at least as fast as ours; the share is found by bisection, once by the clock of PyTorch as it
is, with batch-norms folded, and once by that of inductor with constants frozen. Which channels go
is decided by each of its importances that need neither labels nor training; the figures are test
accuracies, and also those with the statistics of batch-norms taken anew from the images that ours
is calibrated on, without labels.
"""

from __future__ import annotations

import copy
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._inductor import config

import fxreduce
from benchmarks import charts
from benchmarks.document import Table
from benchmarks.frontier import BATCH, CACHE, EPOCHS, NETWORKS, POINT, SIZE, TIMED, Subject
from benchmarks.fusion import fold
from benchmarks.run import Run, parser_of
from fxreduce.data.dataset import Batches, InputBatches
from fxreduce.errors import first_line
from fxreduce.extras import required
from fxreduce.timing import median_latencies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMPORTANCES = {
    "magnitude": "GroupMagnitudeImportance",
    "batch-norm scale": "BNScaleImportance",
    "random": "RandomImportance",
}
LARGEST = 0.95  # share of the channels
LIMIT = 120.0  # seconds of processor time for pruning a network once
OURS = "fxreduce"


@dataclass(frozen=True)
class Row:
    """A network, made faster in one way.

    Attributes:
        clock: "eager" or "inductor": by which both are equally fast.
        way: "fxreduce", or Torch-Pruning's importance.
        share: of the channels of each layer that are gone; None for ours.
        dense, accuracy: on test images, before and after.
        anew: accuracy with batch-norm statistics taken anew.
        faster: how many times as fast as the dense network, by that clock.
        note: why there is no figure, or no equal one.
    """

    network: str
    seed: int
    clock: str
    way: str
    dense: float
    share: float | None = None
    accuracy: float | None = None
    anew: float | None = None
    faster: float | None = None
    note: str = ""


def pruned(module: nn.Module, importance: str, share: float) -> nn.Module:
    """A copy of the network that lacks a share of the channels of each layer.

    Raises:
        TimeoutError: Torch-Pruning comes to no end.
        Exception: what Torch-Pruning raises where it cannot prune it.
    """
    library = pruning_library()
    network, example = copy.deepcopy(module), torch.zeros(2, 3, SIZE, SIZE)
    classifier = [each for each in network.modules() if isinstance(each, nn.Linear)][-1]
    attentions = [each for each in network.modules() if hasattr(each, "qkv")]
    with within(LIMIT):
        torch.manual_seed(0)  # for what is random
        pruner = library.pruner.BasePruner(
            network,
            example,
            importance=getattr(library.pruner.importance, IMPORTANCES[importance])(),
            pruning_ratio=share,
            ignored_layers=[classifier],
            num_heads={each.qkv: each.num_heads for each in attentions},
        )
        pruner.step()
    for each in attentions:  # what the layers hold beside weights
        each.head_dim = each.qkv.out_features // (3 * each.num_heads)
        each.attn_dim = each.head_dim * each.num_heads
    return network.eval()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give up after so many seconds of processor time.

    Raises:
        TimeoutError: they are over.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def pruning_library() -> Any:
    """Torch-Pruning.

    Raises:
        UnsupportedError: it is not installed.
    """
    return required("torch_pruning", "pruning channels", "bench")


def as_deployed(module: nn.Module, images: Tensor) -> nn.Module:
    """The network captured, and its batch-norms folded by PyTorch's own pass."""
    captured = fxreduce.capture(module, images)
    return fold(captured, images) if batch_norms(module) else captured


def in_eager(module: nn.Module) -> nn.Module:
    return module


def in_inductor(module: nn.Module) -> Callable[..., Any]:
    """The network compiled for the shapes that it sees first; freezing is a setting."""
    return torch.compile(module, dynamic=False)


CLOCKS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "eager": in_eager,
    "inductor": in_inductor,
}


class Race:
    """The dense network, ours, and whichever comes third, by one clock, in turns."""

    def __init__(
        self, clock: str, dense: nn.Module, ours: nn.Module, images: Tensor, runs: int
    ) -> None:
        torch.compiler.reset()
        self._prepare, self._images, self._runs = CLOCKS[clock], images, runs
        self._fixed = [self._forward(as_deployed(dense, images)), self._forward(ours)]

    def speeds(self, *theirs: nn.Module) -> list[float]:
        """How many times as fast as the dense network ours is, and theirs are."""
        thirds = [self._forward(as_deployed(each, self._images)) for each in theirs]
        with config.patch(freezing=True), torch.no_grad():
            dense, *others = median_latencies(
                [*self._fixed, *thirds], self._images.device, rounds=self._runs
            )
        return [dense / each for each in others]

    def _forward(self, module: nn.Module) -> Callable[[], Any]:
        return partial(self._prepare(module), self._images)


def share_for(race: Race, prune: Callable[[float], nn.Module], steps: int) -> float:
    """The least share of the channels to prune to be as fast as ours, or the largest of all."""

    def is_enough(share: float) -> bool:
        ours, theirs = race.speeds(prune(share))
        return theirs >= ours

    low, high = 0.0, LARGEST
    if not is_enough(high):
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def rows(subject: Subject, arguments: Any) -> Iterator[Row]:
    """Ours and theirs, by each clock."""
    judge, dense = subject.accuracy("test"), subject.module
    images: Tensor = subject.data.source.fetch(subject.data.test[:TIMED])[0]
    budget: Any = arguments.fraction or fxreduce.MaxDrop(POINT, subject.accuracy("validation"))
    plan = subject.analysis().plan(budget=budget, compensate="refit", candidates="regions")
    reduced = plan.apply(dense)
    for clock in list(CLOCKS)[: 1 if arguments.no_inductor else None]:
        race = Race(clock, dense, reduced, images, arguments.runs)
        row = partial(Row, subject.name, subject.seed, clock, dense=judge(dense))
        try:
            share = share_for(race, partial(pruned, dense, "magnitude"), arguments.steps)
        except Exception as error:  # whatever it says of a network is its row
            yield row(OURS, accuracy=judge(reduced), faster=race.speeds()[0])
            yield row("Torch-Pruning", note=first_line(error)[:200])
            continue
        networks = {name: pruned(dense, name, share) for name in IMPORTANCES}
        faster = dict(zip((OURS, *networks), race.speeds(*networks.values()), strict=True))
        yield row(OURS, accuracy=judge(reduced), faster=faster[OURS])
        for name, network in networks.items():
            yield row(
                name,
                share=share,
                accuracy=judge(network),
                anew=judge(recalibrated(network, subject)),
                faster=faster[name],
                note=doubt(network, networks["magnitude"], share),
            )


def doubt(network: nn.Module, usual: nn.Module, share: float) -> str:
    """What makes a row another than an equally fast network."""
    sizes = [sum(p.numel() for p in each.parameters()) for each in (network, usual)]
    if sizes[0] != sizes[1]:
        return "this importance knows no layer without a batch-norm, and leaves those whole"
    return "slower than ours at the largest share" if share == LARGEST else ""


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [e for e in network.modules() if isinstance(e, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def recalibrated(network: nn.Module, subject: Subject) -> nn.Module:
    """A copy whose batch-norms have the statistics of the calibration images."""
    network = copy.deepcopy(network)
    norms = batch_norms(network)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over what it sees
        norm.train()
    if norms:
        for images in InputBatches(Batches(subject.data.source, subject.data.train, BATCH)):
            network(images)
    return network.eval()


COLUMNS = (
    *((name, "{}", attrgetter(name)) for name in ("network", "clock", "way")),
    ("seed", "{}", attrgetter("seed")),
    ("channels gone", "{:.0%}", attrgetter("share")),
    ("dense", "{:.1%}", attrgetter("dense")),
    ("accuracy", "{:.1%}", attrgetter("accuracy")),
    ("batch-norms anew", "{:.1%}", attrgetter("anew")),
    ("times as fast", "{:.2f}x", attrgetter("faster")),
    ("note", "{}", attrgetter("note")),
)


def chart(found: Sequence[Row]) -> Figure:
    """Accuracy and speed of each way: what stands further right and higher is better."""
    panels, lines = {}, {}
    for network, clock in dict.fromkeys((row.network, row.clock) for row in found):
        here = [row for row in found if (row.network, row.clock) == (network, clock)]
        key = (f"{network}: times as fast ({clock})", "test accuracy")
        points = {row.way: [] for row in here if row.accuracy is not None}
        for row in here:
            if row.accuracy is not None:
                points[row.way].append((row.faster, max(row.accuracy, row.anew or 0)))
        panels[key], lines[key] = points, here[0].dense
    return charts.curves(panels, columns=2, lines=lines, joined=False)


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of training ({EPOCHS})")
    parser.add_argument(
        "--fraction",
        type=float,
        help="of the rectifiers that ours removes (as many as keep the accuracy)",
    )
    parser.add_argument("--steps", type=int, default=4, help="of the bisection (4)")
    parser.add_argument("--runs", type=int, default=50, help="forwards to take medians of (50)")
    parser.add_argument("--no-inductor", action="store_true", help="leave compiled models out")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of trained networks")
    arguments = parser.parse_args(given)
    pruning_library()  # before anything takes long
    run, found = Run.begin("pruning", __doc__, arguments), []
    for name in arguments.networks:
        for seed in arguments.seeds:
            subject = Subject.load(name, seed, arguments.cache, arguments.epochs)
            for row in rows(subject, arguments):
                found.append(row)
                print(row, file=sys.stderr)
    table = Table.of("Equally fast, without training", found, COLUMNS)
    run.end([table], chart=lambda: chart(found))


if __name__ == "__main__":
    main()
