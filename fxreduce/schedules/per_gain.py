"""Choosing by what a removal costs and what it buys, which no published method looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.pipeline import PREPARE
from fxreduce.planning.candidates import ByRegion
from fxreduce.planning.gain import Gains
from fxreduce.planning.ranking import Rank
from fxreduce.schedules.network import plain_copy
from fxreduce.schedules.rule import Action, Rule, Scores, Stage


@dataclass(frozen=True)
class PerGain(Rule):
    """Another rule's scores, each divided by what the removal saves once the network is merged.

    Deleting one of the two rectifiers of an inverted-residual block saves nothing, deleting both
    turns three convolutions into one. So sites that save more together go together, as planning
    chooses them: the set of the least sum of scores for what it saves; sites that save nothing come
    last, the lowest score first. Sets go until as many sites have gone as the rule removes in a
    round. What takes the sites' places is the schedule's `compensate`.

        schedules.run(model, loader, schedules.PerGain(schedules.Easier()), ...)

    Attributes:
        rule: what scores the sites, and what ends the schedule.
        cost: what rates the savings: "flops", "latency" or a cost model.
    """

    rule: Rule
    cost: str | CostModel = "flops"
    name: ClassVar[str] = "per gain"

    def __post_init__(self) -> None:
        as_cost(self.cost)

    @property
    def watches(self) -> bool:
        return self.rule.watches

    def score(self, stage: Stage) -> Scores:
        return self.rule.score(stage)

    def act(self, stage: Stage, scores: Scores) -> Action:
        if not scores:
            return self.rule.act(stage, scores)
        prepared = run_pipeline(plain_copy(stage.graph_module), PREPARE).graph_module
        order = ByRegion(Gains(prepared, as_cost(self.cost)))
        ranks = {name: Rank(score) for name, score in scores.items()}
        chosen: list[str] = []
        while len(chosen) < self.rule.moves and (left := [n for n in scores if n not in chosen]):
            together = order.next(left, ranks)[0]
            order.remove(together)
            chosen += together
        told = ", ".join(f"{name} {scores[name]:.4g}" for name in chosen)
        return Action(dict.fromkeys(chosen), why=f"lowest for what it saves: {told}")

    def stop(self, stage: Stage) -> str | None:
        return self.rule.stop(stage)

    def finish(self, stage: Stage) -> Action:
        return self.rule.finish(stage)
