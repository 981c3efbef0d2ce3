"""What rectifiers cost and gain without any training: accuracy against removals and speed.

    make bench-frontier
    python -m benchmarks.frontier --networks resnet18 --seeds 0 --no-inductor --json figures.json

Small versions of torchvision's ResNet-18, VGG-16-bn, MobileNetV2 and Swin-T and of timm's ViT are
trained on digits that are moved, turned and noisy, once for each seed, and kept. Then rectifiers
go, as many as keep the accuracy on validation images within one point of the dense network's: by
EASIER's rule (lowest entropy first, the identity in its place), with the affine map of each
channel, and with refitted weights by each importance, and by the planner, which looks at what is
saved. Calibration takes training images without labels, each moved anew a few times. Test images
are looked at once, for the figures; speeds are of the merged networks over the dense one, medians
of forwards in turns, both as PyTorch runs them and compiled by inductor with constants frozen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._inductor import config

import fxreduce
from benchmarks import charts
from benchmarks.document import Table
from benchmarks.run import Run, parser_of
from fxreduce.cli.small_models import small_model
from fxreduce.data.dataset import DataSet, Inputs
from fxreduce.data.formats import ImageFormat
from fxreduce.data.names import open_data
from fxreduce.files import write_atomically
from fxreduce.recipes.recipe import load_recipe
from fxreduce.timing import median_latencies
from fxreduce.training.evaluate import Accuracy
from fxreduce.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = (
    "Rectifiers gone within a point of accuracy, three seeds: 60 % on resnet18 and vgg16_bn.",
    "The same on mobilenet_v2 and on swin_t or vit: 50 %.",
    "The planner under inductor: 1.5 times as fast on mobilenet_v2 and on swin_t or vit.",
    "The same on resnet18 and vgg16_bn: 1.3 times.",
)
CLASSES, SIZE, WIDTH, BATCH, EPOCHS = 10, 16, 0.25, 50, 40
CACHE = Path("build/frontier")
POINT = 0.01  # of accuracy
MOVED = 1000  # seeds by which images are moved anew, other than those of the data
TIMED = 8  # images
FRACTIONS = (0.25, 0.5, 0.75)


def vit() -> nn.Module:
    """A vision transformer of timm's with six blocks, for images of 16 pixels."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=96, depth=6, num_heads=3, num_classes=CLASSES
    )


# What builds each network, and the recipe that it is trained by.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        name: (partial(small_model, name, CLASSES, WIDTH), f"digits-{name}")
        for name in ("resnet18", "vgg16_bn", "mobilenet_v2", "swin_t")
    },
    "vit": (vit, "digits-swin_t"),
}
PLANNER = "planner"
# Of each way: what takes a rectifier's place, the importance, and what is removed at a time.
WAYS = {
    "identity": ("identity", "entropy", "sites"),
    "channel": ("channel", "entropy", "sites"),
    "refit": ("refit", "entropy", "sites"),
    "refit, residual": ("refit", "residual", "sites"),
    "refit, sensitivity": ("refit", "sensitivity", "sites"),
    "refit, batchnorm": ("refit", "batchnorm", "sites"),
    PLANNER: ("refit", "entropy", "regions"),
}
CURVES = ("identity", "channel", "refit")


def weights_file(name: str, seed: int, epochs: int) -> str:
    """What the weights of a trained network are called in the cache."""
    trained = "" if epochs == EPOCHS else f"-{epochs}"
    return f"{name}-{seed}{trained}.safetensors"


@dataclass(frozen=True)
class Row:
    """A network reduced in one way.

    Attributes:
        budget: "1 point", or the fraction of the rectifiers.
        removed, sites: how many rectifiers are gone, of how many.
        dense, accuracy: on test images, before and after.
        multiply_adds: of the reduced network over the dense one's.
        eager, inductor: how many times as fast it is; None where that was not measured.
    """

    network: str
    seed: int
    way: str
    budget: str
    removed: int
    sites: int
    dense: float
    accuracy: float
    multiply_adds: float
    eager: float
    inductor: float | None


@dataclass(frozen=True)
class Subject:
    """A trained network and its data."""

    name: str
    seed: int
    module: nn.Module
    data: DataSet

    @classmethod
    def load(cls, name: str, seed: int, cache: Path, epochs: int) -> Subject:
        """Train the network, or take it from the cache."""
        build, recipe = NETWORKS[name]
        images = ImageFormat.of(3, (SIZE, SIZE))
        data = open_data("digits-frontier", images, seed=seed)
        torch.manual_seed(seed)
        module, path = build(), cache / weights_file(name, seed, epochs)
        if path.is_file():
            module.load_state_dict(load_file(path))
        else:
            settings = replace(load_recipe(recipe).training, epochs=epochs)
            Trainer(data, settings, seed=seed)(module)
            cache.mkdir(parents=True, exist_ok=True)
            module.to(memory_format=torch.contiguous_format)
            write_atomically(path, lambda temporary: save_file(module.state_dict(), temporary))
        return cls(name, seed, module.eval(), data)

    def accuracy(self, part: str) -> Accuracy:
        return Accuracy(self.data.part(part, 100), torch.device("cpu"))

    def analysis(self, views: int = 1) -> fxreduce.Analysis:
        return fxreduce.analyze(self.module, Views(self.data, views), progress=False)


@dataclass(frozen=True)
class Views:
    """Batches of training images without labels: as they are, then moved anew `count` - 1 times."""

    data: DataSet
    count: int

    def __len__(self) -> int:
        return self.count * -(-len(self.data.train) // BATCH)

    def __iter__(self) -> Iterator[Inputs]:
        source = self.data.source
        for view in range(self.count):
            for indices in self.data.train.split(BATCH):
                yield (source.vary(indices, MOVED + view) if view else source.fetch(indices))[0]


def rows(subject: Subject, arguments: argparse.Namespace) -> Iterator[Row]:
    """The network reduced in every way within one point, then along the curves."""
    analysis, dense = subject.analysis(arguments.views), subject.accuracy("test")(subject.module)
    bound = fxreduce.MaxDrop(POINT, subject.accuracy("validation"))
    budgets: list[tuple[str, str, Any]] = [(way, "1 point", bound) for way in arguments.ways]
    for fraction in arguments.fractions:
        budgets += [(way, f"{fraction:.0%}", fraction) for way in CURVES if way in arguments.ways]
    for way, label, budget in budgets:
        compensate, importance, candidates = WAYS[way]
        plan = analysis.plan(
            budget=budget, importance=importance, compensate=compensate, candidates=candidates
        )
        reduced = plan.apply(subject.module)
        compiled = not arguments.no_inductor and label == "1 point"
        eager, inductor = speedups(subject, reduced, arguments.runs, compiled)
        report = fxreduce.report(reduced)
        yield Row(
            subject.name,
            subject.seed,
            way,
            label,
            len(report.removed),
            len(report.sites),
            dense,
            subject.accuracy("test")(reduced),
            report.macs_after / report.macs_before,
            eager,
            inductor,
        )


def speedups(
    subject: Subject, reduced: nn.Module, runs: int, compiled: bool
) -> tuple[float, float | None]:
    """How many times as fast the reduced network is, eager and under inductor with freezing."""
    images: Tensor = subject.data.source.fetch(subject.data.test[:TIMED])[0]
    pair = (subject.module, reduced)
    eager = _ratio(pair, images, runs)
    if not compiled:
        return eager, None
    torch.compiler.reset()
    with config.patch(freezing=True), torch.no_grad():
        return eager, _ratio([torch.compile(each, dynamic=False) for each in pair], images, runs)


def _ratio(pair: Sequence[Callable[..., object]], images: Tensor, runs: int) -> float:
    calls = [partial(module, images) for module in pair]
    before, after = median_latencies(calls, images.device, rounds=runs)
    return before / after


@dataclass(frozen=True)
class Means:
    """The rows of a network, a way and a budget, one for each seed."""

    network: str
    way: str
    budget: str
    same: Sequence[Row]

    def of(self, name: str) -> float | None:
        """The mean of a figure over the seeds where it was measured."""
        values = [value for row in self.same if (value := getattr(row, name)) is not None]
        return mean(values) if values else None


def means(found: Sequence[Row]) -> list[Means]:
    keys = dict.fromkeys((row.network, row.way, row.budget) for row in found)
    return [
        Means(*key, [row for row in found if (row.network, row.way, row.budget) == key])
        for key in keys
    ]


COLUMNS = (
    *((name, "{}", attrgetter(name)) for name in ("network", "way", "budget")),
    ("seeds", "{}", lambda each: len(each.same)),
    *(
        (name, form, partial(Means.of, name=field))
        for name, form, field in (
            ("removed", "{:.1f}", "removed"),
            ("of", "{:.0f}", "sites"),
            ("dense", "{:.1%}", "dense"),
            ("accuracy", "{:.1%}", "accuracy"),
            ("multiply-adds", "{:.2f}", "multiply_adds"),
            ("eager", "{:.2f}x", "eager"),
            ("inductor", "{:.2f}x", "inductor"),
        )
    ),
)


def chart(found: Sequence[Row]) -> Figure:
    """Accuracy against removals, and against speed, a row of charts for each network."""
    panels, lines = {}, {}
    for name in dict.fromkeys(row.network for row in found):
        here = [row for row in found if row.network == name]
        for label, along in (
            ("rectifiers removed", lambda row: row.removed / row.sites),
            ("times as fast (eager)", lambda row: row.eager),
        ):
            key = (f"{name}: {label}", "test accuracy")
            panels[key] = {
                way: [(along(row), row.accuracy) for row in here if row.way == way]
                for way in dict.fromkeys(row.way for row in here)
            }
            lines[key] = mean(row.dense for row in here) - POINT
    return charts.curves(panels, columns=2, lines=lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY")
    parser.add_argument("--fractions", nargs="*", type=float, default=FRACTIONS)
    parser.add_argument("--runs", type=int, default=50, help="forwards to take medians of (50)")
    parser.add_argument("--views", type=int, default=4, help="of a calibration image (4)")
    parser.add_argument("--no-inductor", action="store_true", help="leave compiled models out")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of training ({EPOCHS})")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of trained networks")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them")
    arguments = parser.parse_args(given)
    run = Run.begin("frontier", __doc__, arguments)
    found: list[Row] = []
    for name in arguments.networks:
        for seed in arguments.seeds:
            subject = Subject.load(name, seed, arguments.cache, arguments.epochs)
            for row in rows(subject, arguments):
                found.append(row)
                print(asdict(row), file=sys.stderr)
    table = Table.of("Reduced without training, means over the seeds", means(found), COLUMNS)
    run.end([table], BARS, lambda: chart(found))
    if arguments.plot:
        charts.save(chart(found), arguments.plot)


if __name__ == "__main__":
    main()
