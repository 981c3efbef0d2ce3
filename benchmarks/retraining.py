"""Whether weights that are fitted before training again pay: EASIER with and without them.

    make bench-retraining
    python -m benchmarks.retraining --seeds 0 --ways published "refit, quarter" --epochs 8

The networks of the frontier, trained on its digits, lose one rectifier a round by EASIER's rule,
down to the last. As published, the identity takes its place, and all is trained again from the
weights as they are, at the full rate. With refit the weights are first fitted to what the network
computed before, so that a tenth of the rate does, for as many epochs. Further ways, if asked for:
the same with a quarter of the epochs, and a tenth of the rate without the fit. All ways start from
the same dense weights and train each round on the same batches.

Accuracies are means over the seeds on the test images, each moved, turned and made noisy several
times over, which no decision has seen. Epochs are those of training again; within a point of the
dense network is the last round whose mean accuracy is. Rounds that an earlier run has kept do not
count in the seconds of a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from torch import Tensor, nn

from benchmarks import charts
from benchmarks.document import Table, write_text
from benchmarks.frontier import BATCH, CACHE, NETWORKS, POINT, Subject
from benchmarks.frontier import EPOCHS as DENSE_EPOCHS
from benchmarks.run import Run, parser_of
from fxreduce import schedules
from fxreduce.data.dataset import Batches, DataSet, InputBatches
from fxreduce.recipes.recipe import load_recipe
from fxreduce.schedules.rounds import Round
from fxreduce.training.evaluate import Accuracy
from fxreduce.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = (
    "With the same epochs a round: at every k as accurate as published, or more.",
    "Within a point of the dense network: 30 % more rectifiers gone, or a quarter of the epochs.",
)
PUBLISHED = "published"
# Of each way: whether weights are fitted, and the shares of the rate and of the epochs of a round.
WAYS = {
    PUBLISHED: (False, 1.0, 1.0),
    "refit": (True, 0.1, 1.0),
    "refit, quarter": (True, 0.1, 0.25),
    "tenth of the rate": (False, 0.1, 1.0),
}
DRAWS = 5  # of how each test image is moved, turned and noisy
_FIRST_DRAW = 7_000_000  # of the seeds of these


@dataclass(frozen=True)
class Row:
    """One round of one way.

    Attributes:
        removed, sites: how many rectifiers are gone, of how many.
        accuracy: on test images.
        epochs: of training again, so far.
        left_out: whether fitted weights were left out, as they would lower the accuracy.
    """

    network: str
    seed: int
    way: str
    removed: int
    sites: int
    accuracy: float
    epochs: int
    left_out: bool


def rows(subject: Subject, way: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """The rounds of one way."""
    refit, rate, share = WAYS[way]
    settings = load_recipe(NETWORKS[subject.name][1]).training
    settings = replace(
        settings, rate=rate * settings.rate, epochs=max(1, round(share * arguments.epochs))
    )
    trainer = Trainer(
        subject.data, settings, seed=None, begin_epoch=schedules.begin_epoch, progress=False
    )
    validation, test = subject.accuracy("validation"), Accuracy(test_batches(subject.data))
    judged: list[nn.Module] = []
    found: list[Row] = []

    def evaluate(module: nn.Module) -> float:
        judged[:] = [module]
        return validation(module)

    def tell(done: Round) -> None:
        removed = len(done.removed) + (found[-1].removed if found else 0)
        row = Row(
            subject.name,
            subject.seed,
            way,
            removed,
            removed + done.left,
            test(judged[0]),
            len(trainer.epochs),
            "the whole graph" in done.refused,
        )
        found.append(row)
        print(asdict(row), file=sys.stderr, flush=True)

    schedules.easier(
        subject.module,
        InputBatches(Batches(subject.data.source, subject.data.train, BATCH)),
        train=trainer,
        evaluate=evaluate,
        drop=float("inf"),
        rounds=arguments.rounds,
        trained=True,
        refit=refit,
        seed=subject.seed,
        progress=False,
        on_round=tell,
    )
    yield from found


def test_batches(data: DataSet) -> list[tuple[Tensor, Tensor]]:
    """The test images as they are, and drawn anew."""
    drawn = [data.source.vary(data.test, _FIRST_DRAW + number) for number in range(1, DRAWS)]
    batches = [data.source.fetch(data.test), *drawn]
    return [(images, labels) for images, labels in batches if isinstance(images, Tensor)]


def kept_rows(subject: Subject, way: str, arguments: argparse.Namespace) -> list[Row]:
    """The rounds of one way, those that an earlier run has kept where it was told to."""
    if arguments.keep is None:
        return list(rows(subject, way, arguments))
    name = way.replace(",", "").replace(" ", "-")
    path = (
        arguments.keep / f"retraining-{subject.name}-{subject.seed}-{name}-{arguments.epochs}.json"
    )
    if path.is_file():
        return [Row(**each) for each in json.loads(path.read_text())]
    found = list(rows(subject, way, arguments))
    arguments.keep.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([asdict(row) for row in found], indent=1))
    return found


@dataclass(frozen=True)
class Curve:
    """The rounds of a network and a way, means over the seeds, by the number of removals."""

    network: str
    way: str
    rounds: dict[int, Sequence[Row]]

    @property
    def accuracy(self) -> dict[int, float]:
        return {k: mean(row.accuracy for row in same) for k, same in self.rounds.items()}

    @property
    def within(self) -> int:
        """How many rectifiers are gone in the last round within a point of the dense network."""
        found = self.accuracy
        return max(k for k, accuracy in found.items() if accuracy >= found[0] - POINT)

    @property
    def epochs(self) -> int:
        """Of training again, until then."""
        return self.rounds[self.within][0].epochs

    @property
    def sites(self) -> int:
        return self.rounds[0][0].sites

    @property
    def left_out(self) -> int:
        """Rounds in which fitted weights were left out, of all seeds."""
        return sum(row.left_out for same in self.rounds.values() for row in same)


def curves(found: Sequence[Row]) -> list[Curve]:
    keys = dict.fromkeys((row.network, row.way) for row in found)
    return [
        Curve(
            *key,
            {
                k: [row for row in found if (row.network, row.way, row.removed) == (*key, k)]
                for k in sorted({row.removed for row in found if (row.network, row.way) == key})
            },
        )
        for key in keys
    ]


def by_removals(found: Sequence[Curve], ways: Sequence[str]) -> Table:
    """A row for each network and number of removals, a column for each way."""
    named = {(curve.network, curve.way): curve for curve in found}
    places = [
        (network, k)
        for network in dict.fromkeys(curve.network for curve in found)
        for k in named[network, ways[0]].rounds
    ]
    columns = (
        ("network", "{}", lambda place: place[0]),
        ("removed", "{}", lambda place: place[1]),
        *(
            (way, "{:.2%}", lambda place, way=way: named[place[0], way].accuracy.get(place[1]))
            for way in ways
        ),
    )
    return Table.of("Accuracy after training again, means over the seeds", places, columns)


COLUMNS = (
    *((name, "{}", attrgetter(name)) for name in ("network", "way")),
    ("seeds", "{}", lambda each: len(each.rounds[0])),
    ("dense", "{:.2%}", lambda each: each.accuracy[0]),
    ("removed", "{}", attrgetter("within")),
    ("of", "{}", attrgetter("sites")),
    ("epochs", "{}", attrgetter("epochs")),
    ("accuracy", "{:.2%}", lambda each: each.accuracy[each.within]),
    ("fits left out", "{}", attrgetter("left_out")),
)


def chart(found: Sequence[Curve]) -> Figure:
    """Accuracy against removals and against the epochs that they took."""
    panels, lines = {}, {}
    for name in dict.fromkeys(curve.network for curve in found):
        here = [curve for curve in found if curve.network == name]
        for label, along in (("rectifiers removed", "removed"), ("epochs", "epochs")):
            key = (f"{name}: {label}", "test accuracy")
            panels[key] = {
                curve.way: [
                    (float(getattr(curve.rounds[k][0], along)), accuracy)
                    for k, accuracy in curve.accuracy.items()
                ]
                for curve in here
            }
            lines[key] = here[0].accuracy[0] - POINT
    return charts.curves(panels, columns=2, lines=lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18"], choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS)[:2], choices=WAYS, metavar="WAY")
    parser.add_argument("--epochs", type=int, default=4, help="of a round (4)")
    parser.add_argument(
        "--dense", type=int, default=DENSE_EPOCHS, help=f"epochs of the first ({DENSE_EPOCHS})"
    )
    parser.add_argument("--rounds", type=int, help="at most so many (all rectifiers)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of trained networks")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keeps rounds there, for a run of further ways"
    )
    arguments: argparse.Namespace = parser.parse_args(given)
    run = Run.begin("retraining", __doc__, arguments)
    found: list[Row] = []
    for name in arguments.networks:
        for seed in arguments.seeds:
            subject = Subject.load(name, seed, arguments.cache, arguments.dense)
            for way in arguments.ways:
                found += kept_rows(subject, way, arguments)
    drawn = curves(found)
    tables = [
        Table.of("Within a point of the dense network", drawn, COLUMNS),
        by_removals(drawn, arguments.ways),
    ]
    run.end(tables, BARS, lambda: chart(drawn))


if __name__ == "__main__":
    main()
