"""What methods made of a model, side by side: a table for a person, JSON for a program."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch

from fxreduce.cli.experiment import Experiment
from fxreduce.cli.rounds import Point
from fxreduce.recipes.recipe import Published
from fxreduce.report.report import Report
from fxreduce.report.table import table
from fxreduce.schedules.result import ScheduleResult

SCHEMA = 1
_HEADER = (
    "method",
    "round",
    "removed",
    "validation",
    "test",
    "published",
    "multiply-adds",
    "ms",
    "faster",
    "epochs",
    "counts",
)


@dataclass(frozen=True)
class Outcome:
    """One method's run.

    Attributes:
        method: Its name.
        points: Its rounds.
        best: Number of the round that its limits allow with the most removed.
        stopped: Why it ended.
        report: Of the best round's network, merged and verified.
    """

    method: str
    points: tuple[Point, ...]
    best: int
    stopped: str
    report: Report

    @classmethod
    def of(
        cls, method: str, points: tuple[Point, ...], result: ScheduleResult, report: Report
    ) -> Outcome:
        """The outcome of a schedule, with the report of its best network, merged."""
        return cls(method, points, result.best.number, result.stopped, report)


@dataclass(frozen=True)
class Comparison:
    """Methods on one experiment.

    Attributes:
        title: Of the experiment.
        model, data: Their names.
        device: Where latencies were taken.
        seed: Of all that is random.
        epochs: Of one training.
        outcomes: One a method.
        published: What is known of the same experiment.
    """

    title: str
    model: str
    data: str
    device: str
    seed: int
    epochs: int
    outcomes: tuple[Outcome, ...]
    published: tuple[Published, ...]

    @classmethod
    def of(cls, experiment: Experiment, outcomes: tuple[Outcome, ...], seed: int) -> Comparison:
        """The comparison of what ran on an experiment."""
        recipe = experiment.recipe
        return cls(
            f"{recipe.model} on {experiment.data.name.partition(':')[0]}",
            recipe.model,
            experiment.data.name,
            str(experiment.device),
            seed,
            recipe.training.epochs,
            outcomes,
            recipe.published,
        )

    def to_json(self) -> str:
        """The comparison as JSON; `schema` numbers the layout. Accuracies are fractions."""
        outcomes = [
            asdict(each) | {"report": json.loads(each.report.to_json())} for each in self.outcomes
        ]
        content = asdict(self) | {"outcomes": outcomes}
        return json.dumps({"schema": SCHEMA, "torch": torch.__version__, **content}, indent=2)

    def __str__(self) -> str:
        rows = [self._cells(point) for each in self.outcomes for point in each.points]
        shown = [row for row in zip(*([_HEADER, *rows]), strict=True) if any(row[1:])]
        header, *body = zip(*shown, strict=True)
        return "\n\n".join(
            (self.title, table(header, body), self._notes(), "\n".join(self._summary()))
        )

    def _cells(self, point: Point) -> tuple[str, ...]:
        return (
            point.method,
            str(point.number),
            str(point.removed),
            f"{point.validation:.1%}",
            f"{point.test:.1%}",
            self._known(point),
            "-" if point.macs is None else f"{point.macs / 1e6:.2f} M",
            f"{point.seconds * 1e3:.2f}",
            f"{point.faster:.2f}x",
            str(point.epochs),
            "yes" if point.counts else "no",
        )

    def _known(self, point: Point) -> str:
        for each in self.published:
            if each.method == point.method and point.removed in each.removed:
                return f"{each.accuracy[each.removed.index(point.removed)]:.2f}%"
        return ""

    def _notes(self) -> str:
        lines = [
            "removed        rectifiers that are gone",
            "test           accuracy on samples that no decision has seen",
            "multiply-adds  of one sample after merging",
            f"ms             of one sample after merging, on {self.device}, the least of many",
            "faster         than the dense network, merged as well; timed in turns",
            "epochs         trained so far, the dense network's among them",
        ]
        if self.published:
            lines.insert(2, "published      as " + "; ".join(p.source for p in self.published))
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        lines = []
        for each in self.outcomes:
            found = {point.number: point for point in each.points}
            best, dense = found.get(each.best), found.get(0)
            figures = each.report.summary()
            accuracy = ""
            if best is not None and dense is not None:
                accuracy = (
                    f", test accuracy {dense.test:.1%} -> {best.test:.1%}, {best.faster:.2f} "
                    f"times as fast, {best.epochs} epochs"
                )
            lines.append(f"{each.method}: {figures}{accuracy}; stopped: {each.stopped}")
        return lines
