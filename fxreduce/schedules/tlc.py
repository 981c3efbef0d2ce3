"""TLC: too-linear sites collapse, judged by the batch-norms before them (AAAI 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from fxreduce.errors import ScheduleError
from fxreduce.graph.capture import Model
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import Refusal, ScaleShift
from fxreduce.planning import ranking
from fxreduce.planning.forced_state import ForcedState, normal
from fxreduce.schedules.api import Options, run
from fxreduce.schedules.result import ScheduleResult
from fxreduce.schedules.rule import (
    Action,
    Evaluate,
    Rule,
    Scores,
    Stage,
    Train,
    by_score,
    require_variant,
    value_of,
)

RANKINGS = ("gap", "error")


@dataclass(frozen=True)
class Tlc(Rule):
    """Score: gap, the loss on validation data after collapsing the site, less that before.

    A site collapses by forcing a state on each channel, whose pre-activation is y ~ N(β, γ²): with
    β > 0 the channel is linear, otherwise it is removed, its row masked; then the rectifier is the
    identity. β and γ are those of the batch-norm before the rectifier; where there is none, as
    behind a sum, the mean and the standard deviation on the calibration data. The mask is a
    diagonal of 0 and 1 in the site's place that training leaves alone: it covers the shortcut of a
    sum, too, and merges into the rows of what stands before it.

    If the smallest gap is negative, the smallest 2, 3, ... are collapsed together, as long as the
    loss does not exceed what it was; otherwise the smallest alone.

    Attributes:
        variant: "paper" stops before the set that exceeds; "code" takes that set.
        ranking: "gap"; or "error", the mean over channels of how often the forced state is wrong,
            which needs no labels: Φ(−|β|/|γ|), see `fxreduce.planning.forced_state`. The lowest
            goes, one a round.
        loss: of a module on the whole of the validation data, smaller is better.
    """

    variant: str = "paper"
    ranking: str = "gap"
    loss: Callable[[nn.Module], float] | None = None
    name: ClassVar[str] = "TLC"

    def __post_init__(self) -> None:
        require_variant(self.variant)
        if self.ranking not in RANKINGS:
            raise ScheduleError(
                f"ranking is one of {', '.join(map(repr, RANKINGS))}; seen: {self.ranking!r}"
            )

    def score(self, stage: Stage) -> Scores:
        if self.ranking == "error":
            return self._errors(stage)
        before = self._loss(stage, stage.graph_module)
        maps = collapsed(stage)
        gaps = {name: self._joint(stage, {name: each}) - before for name, each in maps.items()}
        return {name: gap for name, gap in gaps.items() if gap < inf}

    def act(self, stage: Stage, scores: Scores) -> Action:
        order = by_score(scores)
        if not order:
            return Action(why="no site can be collapsed")
        maps, count = collapsed(stage), 1
        if self.ranking == "gap" and scores[order[0]] < 0:
            before = self._loss(stage, stage.graph_module)
            count = self._together(stage, maps, order, before)
        chosen = order[:count]
        told = ", ".join(f"{name} {scores[name]:.4g}" for name in chosen)
        return Action({name: maps[name] for name in chosen}, frozen=True, why=f"lowest: {told}")

    def _together(
        self, stage: Stage, maps: Mapping[str, ScaleShift], order: list[str], before: float
    ) -> int:
        """How many of the smallest gaps go together."""
        for count in range(2, len(order) + 1):
            if self._joint(stage, {name: maps[name] for name in order[:count]}) > before:
                return count if self.variant == "code" else count - 1
        return len(order)

    def _joint(self, stage: Stage, maps: Mapping[str, ScaleShift]) -> float:
        """The loss without several sites; infinite where they cannot go."""
        module = stage.without(maps)
        return inf if isinstance(module, Refusal) else self._loss(stage, module)

    def _loss(self, stage: Stage, module: nn.Module) -> float:
        if self.loss is None:
            return -stage.evaluate(module)
        with torch.no_grad():
            return value_of(self.loss, module.eval(), "loss")

    def _errors(self, stage: Stage) -> Scores:
        measured = stage.measure(moments=True)
        rule = ForcedState()
        judged = ranking.Stage(
            stage.graph_module,
            measured,
            stage.calibration,
            lambda name: stage.without({name: None}),
        )
        return {name: rank.value for name, rank in rule.rank(judged).items()}


def tlc(
    model: Model,
    loader: Iterable[Any],
    *,
    train: Train,
    evaluate: Evaluate,
    variant: str = "paper",
    ranking: str = "gap",
    loss: Callable[[nn.Module], float] | None = None,
    drop: float | None = None,
    **options: Unpack[Options],
) -> ScheduleResult:
    """TLC (AAAI 2025): collapse the sites whose loss suffers least, train again, and so on.

    Args:
        model, loader, train, evaluate, options: see `fxreduce.schedules.run`.
        variant, ranking: see `Tlc`.
        loss: of a module on the whole of the validation data; None is the negative accuracy.
        drop: how far the accuracy may fall below the dense one's. None is 0.01 for "paper", whose
            value is not published, and no limit for "code"; infinity is no limit.
    """
    limit = 0.01 if drop is None and variant == "paper" else drop
    rule = Tlc(variant, ranking, loss)
    return run(model, loader, rule, train=train, evaluate=evaluate, drop=limit, **options)


def collapsed(stage: Stage) -> dict[str, ScaleShift]:
    """The 0 or 1 of each channel that takes a site's place when it collapses, by site."""
    measured = stage.measure(moments=True)
    maps = {}
    for site in find_sites(stage.graph_module):
        if (statistics := measured.get(site.name)) is None:
            continue
        mean, _, _ = normal(stage.graph_module, site, statistics)
        maps[site.name] = kept_channels(mean, -statistics.channel_axis - 1)
    return maps


def kept_channels(mean: Tensor, rank: int) -> ScaleShift:
    """1 for channels of mean β > 0, which are linear, and 0 for others, which are removed."""
    scale = (mean > 0).double()
    return ScaleShift(scale, torch.zeros_like(scale), rank)
