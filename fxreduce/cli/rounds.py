"""One round of a schedule as a person compares it: accuracies, sizes, speed, and what it took."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

import fxreduce
from fxreduce.calibration.ranks import is_first
from fxreduce.cli.errors import UsageError
from fxreduce.cli.experiment import Experiment
from fxreduce.errors import first_line
from fxreduce.files import write_atomically
from fxreduce.schedules.network import plain_copy
from fxreduce.schedules.rounds import Round
from fxreduce.timing import least_latencies
from fxreduce.training.evaluate import call

_ROUNDS = 50


@dataclass(frozen=True)
class Point:
    """One round of one method.

    Attributes:
        method: Its name.
        number: Of the round; 0 is the dense network.
        removed: Rectifiers removed so far.
        validation: Accuracy on the validation samples, which decisions are taken on.
        test: Accuracy on the test samples.
        epochs: Epochs trained so far, those of the dense network among them.
        macs: Multiply-adds of one sample after merging; None where they could not be counted.
        seconds: The least of one sample after merging, on the experiment's device.
        faster: How many times as fast as the dense network, merged as well, timed in turns.
        counts: Whether the method's limits bear the round.
    """

    method: str
    number: int
    removed: int
    validation: float
    test: float
    epochs: int
    macs: int | None
    seconds: float
    faster: float
    counts: bool


class Points:
    """The rounds of one method, each measured when it ends, and kept in a file for a resumed run.

    Args:
        method: Its name.
        experiment: What it runs on.
        file: Where the points are kept; None keeps them here alone.
        epochs: Those that were trained before the method began.

    Raises:
        UsageError: The file is there and holds something else.
    """

    def __init__(
        self, method: str, experiment: Experiment, file: Path | None, epochs: int = 0
    ) -> None:
        self._method, self._experiment, self._file = method, experiment, file
        self._points = {} if file is None else _read(file)
        self._epochs, self._counted = epochs, experiment.epochs()
        self._validation = experiment.accuracy("validation")
        self._test = experiment.accuracy("test")
        self._example = experiment.example()
        # What it costs does not depend on the weights, so that it need not be the trained one.
        self._dense = fxreduce.fuse(experiment.model.module, example_inputs=self._example)
        self._module: GraphModule | None = None

    def evaluate(self, module: nn.Module) -> float:
        """The accuracy that the schedule goes by; the module is kept for `measure`."""
        assert isinstance(module, GraphModule)  # as schedules work on graphs
        self._module = module
        return self._validation(module)

    def measure(self, done: Round) -> Point:
        """The point of a round that has just ended, whose module was evaluated last."""
        assert self._module is not None  # as a round ends with its evaluation
        merged = fxreduce.fuse(plain_copy(self._module), example_inputs=self._example)
        calls = [partial(call, module, self._example) for module in (self._dense, merged)]
        before, after = least_latencies(calls, self._experiment.device, rounds=_ROUNDS)
        earlier = [point for point in self._points.values() if point.number < done.number]
        spent = self._experiment.epochs() - self._counted
        self._counted += spent
        point = Point(
            self._method,
            done.number,
            max((each.removed for each in earlier), default=0) + len(done.removed),
            done.accuracy,
            self._test(self._module),
            max((each.epochs for each in earlier), default=self._epochs) + spent,
            fxreduce.report(merged).macs_after,
            after,
            before / after,
            done.allowed,
        )
        self._points[done.number] = point
        if self._file is not None and is_first():
            write_atomically(self._file, self._write)
        return point

    def all(self) -> tuple[Point, ...]:
        """The points so far, in the order of the rounds."""
        return tuple(self._points[number] for number in sorted(self._points))

    def _write(self, path: Path) -> None:
        path.write_text(json.dumps([asdict(point) for point in self.all()], indent=1))


def _read(file: Path) -> dict[int, Point]:
    if not file.is_file():
        return {}
    try:
        points = [Point(**each) for each in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{file} must hold the rounds of an earlier run; it does not ({first_line(error)}). "
            "Take the folder away or name another"
        ) from error
    return {point.number: point for point in points}
