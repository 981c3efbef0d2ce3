"""Planning from what a graph of torch.compile was called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.calibration.loader import Loader
from fxreduce.errors import UnsupportedError
from fxreduce.graph.capture import capture
from fxreduce.planning.example import learn_shapes
from fxreduce.planning.planner import Options, make_plan
from fxreduce.planning.removal import PlannedRemoval


@dataclass(frozen=True)
class PlanFromCalls:
    """Makes the plan that `fxreduce.analyze(graph, calls).plan(...)` makes.

    Attributes:
        calls: how many calls are the calibration data.
        options: how the plan is made.
    """

    calls: int
    options: Options

    def __post_init__(self) -> None:
        if type(self.calls) is not int or self.calls < 1:
            raise UnsupportedError(
                f"calibrate is the number of calls to observe, at least 1; seen: {self.calls!r}"
            )

    def __hash__(self) -> int:
        """Of what can be hashed for certain: budgets and importances may be the user's own."""
        return hash(self.calls)

    def __call__(
        self, graph_module: GraphModule, calls: Sequence[tuple[Any, ...]]
    ) -> PlannedRemoval:
        """The plan for a graph, from the values of its placeholders.

        Raises:
            CaptureError, CalibrationError, PlanError: the graph or the calls do not fit.
        """
        captured = capture(graph_module)
        calibration = Calibration.of(captured, Loader(calls, keep=True), None, progress=False)
        example = learn_shapes(captured, calibration.first(), calibration.forward)
        return make_plan(captured, calibration, example, self.options).removal
