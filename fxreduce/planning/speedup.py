"""The budget that asks for a speed-up, and removes no more than it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite

from torch.fx import GraphModule

from fxreduce.errors import PlanError
from fxreduce.planning.budgets import Combinable, Context, Judge, Shortfall, is_number
from fxreduce.report.trial import Trial


@dataclass(frozen=True)
class Speedup(Combinable):
    """Remove rectifiers until the merged model is `x` times as cheap as the original unmerged.

    By the plan's cost model, added up over the graph, and with cost="latency" by the clock. What
    merging gains without any removal counts. To be rated, the graph is merged after each removal,
    which may take longer than to measure it.

    A speed-up that cannot be reached is no error, as with `MaxDrop(...) & Speedup(x)` it is to be
    expected: the plan then keeps the removals up to the largest speed-up that was found, leaves out
    those behind it, which cost accuracy and gained nothing, and says so in `stopped` and in the
    report.
    """

    x: float

    def __post_init__(self) -> None:
        if not is_number(self.x) or not isfinite(self.x) or self.x < 1:
            raise PlanError(
                f"a speed-up is how many times as cheap the model gets, 1 or more; seen: {self.x!r}"
            )

    @property
    def for_speed(self) -> bool:
        return True

    def begin(self, context: Context) -> Judge:
        return _SpeedupJudge(self.x, context.speedup)


@dataclass
class _SpeedupJudge(Judge):
    wanted: float
    speedup: Callable[[GraphModule], float]
    best: float = 0.0
    best_after: int = 0
    best_graph: GraphModule | None = None
    seen: dict[int, float] = field(default_factory=dict)

    def satisfied(self, current: GraphModule, removed: int) -> str | None:
        if removed not in self.seen:
            self.seen[removed] = found = self.speedup(current)
            if found > self.best:
                self.best, self.best_after, self.best_graph = found, removed, current
        if self.seen[removed] < self.wanted:
            return None
        return f"it is {self.seen[removed]:.4g} times as cheap, as the budget says"

    def trials(self) -> tuple[Trial, ...]:
        return tuple(Trial("times as cheap", *each, True) for each in sorted(self.seen.items()))

    def shortfall(self) -> Shortfall | None:
        if self.best >= self.wanted or self.best_graph is None:
            return None
        return Shortfall(
            f"{self.wanted:g} times as cheap is not reached; the best that was found is "
            f"{self.best:.4g} times, with {self.best_after} of {max(self.seen)} removals, which "
            "are kept",
            self.best_after,
            self.best_graph,
        )
