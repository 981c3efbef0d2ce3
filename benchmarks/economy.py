"""What reducing a model takes: time and memory over the plain forward, and how many images.

    make bench-economy
    python -m benchmarks.economy --models resnet50 --images 16 --json figures.json

`fxreduce.apply` with half of the rectifiers to remove, in units of the plain forward over the same
calibration images: its processor time, with plain forwards before and after it; its multiply-adds,
which do not depend on what else the machine does; and its highest resident set size over that of
the plain forward, each in a process of its own, weights and libraries included. Then the accuracy
on test images of a small network that was trained on digits, by how many images it was reduced
with, on the mean of several draws.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import fxreduce
from benchmarks.document import Table
from benchmarks.frontier import CACHE, EPOCHS, NETWORKS, Subject
from benchmarks.models import build
from benchmarks.run import Run, parser_of, printed_alone
from benchmarks.work import Work
from fxreduce.data.dataset import Batches, InputBatches

MODELS = ("resnet50", "timm:vit_base_patch16_224", *NETWORKS)
BATCH, BUDGET = 8, 0.5
COUNTS = (16, 32, 64, 128, 256, 512, 1000)
BARS = (
    "resnet50, 224 pixels, 64 images: less than 60 plain forwards, at most 2.5 times the memory.",
    "vit_base, 224 pixels, 64 images: less than 6,144 MiB.",
    "Accuracy with 64 images within half a point of that with 1,000.",
)


@dataclass(frozen=True)
class Images:
    """Random images in batches, made anew each time, so that they take no memory."""

    count: int
    size: int

    def __len__(self) -> int:
        return -(-self.count // BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(len(self)):
            generator = torch.Generator().manual_seed(number)
            count = min(BATCH, self.count - number * BATCH)
            yield torch.randn(count, 3, self.size, self.size, generator=generator)


@dataclass(frozen=True)
class Figures:
    """What `apply` took of one model; all but the MiB are over the plain forward.

    Attributes:
        seconds: processor time.
        work: multiply-adds.
        plain_mib, mib: highest resident set sizes of the plain forward and of `apply`.
    """

    model: str
    images: int
    removed: int
    seconds: float
    work: float
    plain_mib: float
    mib: float


@dataclass(frozen=True)
class Row:
    """A trained network reduced with some images: accuracies on test images."""

    network: str
    images: int
    draws: int
    dense: float
    accuracy: float
    least: float


def subject(name: str, arguments: argparse.Namespace) -> tuple[nn.Module, Any]:
    """A model and its calibration batches."""
    if name in NETWORKS:
        trained = Subject.load(name, 0, arguments.cache, arguments.epochs)
        source = trained.data.source
        chosen = trained.data.train[: arguments.images]
        return trained.module, InputBatches(Batches(source, chosen, BATCH))
    return build(name, arguments.size), Images(arguments.images, arguments.size)


@torch.no_grad()
def forward(model: nn.Module, batches: Any) -> float:
    """The processor seconds of the plain forward over all batches."""
    start = time.process_time()
    for batch in batches:
        model(batch)
    return time.process_time() - start


def measured(kind: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What a process of its own measures of one model."""
    model, batches = subject(name, arguments)
    if kind == "plain":
        forward(model, batches)
        return {"mib": peak_mib()}
    with Work() as plain:
        before = forward(model, batches)
    start = time.process_time()
    with Work() as work:
        reduced = fxreduce.apply(model, batches, budget=BUDGET, progress=False)
    seconds = time.process_time() - start
    mib = peak_mib()
    return {
        "mib": mib,
        "seconds": seconds / mean((before, forward(model, batches))),
        "work": work.total / plain.total,
        "removed": len(fxreduce.report(reduced).removed),
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def figures_of(name: str, arguments: argparse.Namespace) -> Figures:
    plain, found = (in_process(kind, name, arguments) for kind in ("plain", "apply"))
    return Figures(
        name,
        arguments.images,
        int(found["removed"]),
        found["seconds"],
        found["work"],
        plain["mib"],
        found["mib"],
    )


def in_process(kind: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """`measured` by a process of its own."""
    given = ("--one", kind, "--models", name, "--images", arguments.images)
    given += ("--size", arguments.size, "--cache", arguments.cache, "--epochs", arguments.epochs)
    output = printed_alone(__file__, *given)
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def rows(name: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """A trained network reduced with few and with many images."""
    trained = Subject.load(name, 0, arguments.cache, arguments.epochs)
    accuracy, source = trained.accuracy("test"), trained.data.source
    dense = accuracy(trained.module)
    for count in arguments.counts:
        found = []
        for draw in range(arguments.draws):
            generator = torch.Generator().manual_seed(draw)
            order = torch.randperm(len(trained.data.train), generator=generator)
            chosen = trained.data.train[order[:count]]
            batches = InputBatches(Batches(source, chosen, max(BATCH, count // BATCH)))
            reduced = fxreduce.apply(
                trained.module, batches, budget=arguments.budget, progress=False
            )
            found.append(accuracy(reduced))
        yield Row(name, count, arguments.draws, dense, mean(found), min(found))


def tables(figures: Sequence[Figures], found: Sequence[Row]) -> list[Table]:
    """What reducing takes, and what it leaves by the number of images."""
    taking = Table.of(
        "What reducing takes; the plain forward over the images is 1",
        figures,
        [
            ("model", "{}", attrgetter("model")),
            ("images", "{}", attrgetter("images")),
            ("removed", "{}", attrgetter("removed")),
            ("processor time", "{:.1f}", attrgetter("seconds")),
            ("multiply-adds", "{:.1f}", attrgetter("work")),
            ("plain MiB", "{:.0f}", attrgetter("plain_mib")),
            ("MiB", "{:.0f}", attrgetter("mib")),
            ("memory", "{:.2f}", lambda each: each.mib / each.plain_mib),
        ],
    )
    leaving = Table.of(
        "Accuracy by how many images a network was reduced with",
        found,
        [
            ("network", "{}", attrgetter("network")),
            ("images", "{}", attrgetter("images")),
            ("draws", "{}", attrgetter("draws")),
            ("dense", "{:.1%}", attrgetter("dense")),
            ("reduced", "{:.1%}", attrgetter("accuracy")),
            ("worst draw", "{:.1%}", attrgetter("least")),
        ],
    )
    return [each for each in (taking, leaving) if each.rows]


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--images", type=int, default=64, help="calibration images (64)")
    parser.add_argument("--size", type=int, default=224, help="their pixels a side (224)")
    parser.add_argument("--networks", nargs="*", default=["resnet18"], choices=NETWORKS)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, metavar="IMAGES")
    parser.add_argument("--budget", type=float, default=BUDGET, help="for --networks (0.5)")
    parser.add_argument("--draws", type=int, default=3, help="draws of images (3)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of training --networks")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of trained networks")
    parser.add_argument("--one", choices=("plain", "apply"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.one:
        print(json.dumps(measured(arguments.one, arguments.models[0], arguments)))
        return
    run = Run.begin("economy", __doc__, arguments)
    figures = [figures_of(name, arguments) for name in arguments.models]
    found = [row for name in arguments.networks for row in rows(name, arguments)]
    run.end(tables(figures, found), BARS)


if __name__ == "__main__":
    main()
