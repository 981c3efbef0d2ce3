"""EASIER: the site of the lowest entropy goes, the network is trained again (ECML PKDD 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

from fxreduce.graph.capture import Model
from fxreduce.schedules.api import Options, run
from fxreduce.schedules.per_gain import PerGain
from fxreduce.schedules.result import ScheduleResult
from fxreduce.schedules.rule import (
    Action,
    Evaluate,
    Rule,
    Scores,
    Stage,
    Train,
    by_score,
    require_count,
    require_variant,
)


@dataclass(frozen=True)
class Easier(Rule):
    """Score: Ĥ, the mean over channels of the entropy in bits of the state ON or OFF.

    Attributes:
        variant: "paper" measures on the calibration data, zeros left out and batches pooled. "code"
            measures on the forwards of the last training epoch, in train mode: zero counts as ON,
            and the entropies of mini-batches are averaged; sites whose entropy is exactly 0 go in
            the same round as the lowest one.
        moves: how many sites go in a round.
    """

    variant: str = "paper"
    moves: int = 1
    name: ClassVar[str] = "EASIER"

    def __post_init__(self) -> None:
        require_variant(self.variant)
        require_count("moves", self.moves)

    @property
    def watches(self) -> bool:
        return self.variant == "code"

    def score(self, stage: Stage) -> Scores:
        measured = stage.last_epoch("easier-code") if self.watches else stage.measure()
        return {name: site.entropy for name, site in measured.items()}

    def act(self, stage: Stage, scores: Scores) -> Action:  # noqa: ARG002
        order = by_score(scores)
        chosen = order[: self.moves]
        if self.variant == "code":
            chosen += [name for name in order[self.moves :] if scores[name] == 0]
        told = ", ".join(f"{name} {scores[name]:.4f}" for name in chosen)
        return Action(dict.fromkeys(chosen), why=f"lowest entropy in bits: {told}")


def easier(
    model: Model,
    loader: Iterable[Any],
    *,
    train: Train,
    evaluate: Evaluate,
    variant: str = "paper",
    drop: float | None = None,
    moves: int = 1,
    per_gain: bool = False,
    **options: Unpack[Options],
) -> ScheduleResult:
    """EASIER (ECML PKDD 2024): remove the site of the lowest entropy, train again, and so on.

    Args:
        model, loader, train, evaluate, options: see `fxreduce.schedules.run`.
        variant: see `Easier`. "code" runs to the last site unless `drop` says otherwise.
        drop: δ, how far the accuracy may fall below the dense one's. None is 0.01 for "paper",
            whose values are not published, and no limit for "code"; infinity is no limit.
        moves: how many sites go in a round; the paper's is 1.
        per_gain: whether the entropy is divided by what the removal saves, see `PerGain`; the
            schedule's `cost` rates that.
    """
    limit = 0.01 if drop is None and variant == "paper" else drop
    rule: Rule = Easier(variant, moves)
    if per_gain:
        rule = PerGain(rule, options.get("cost", "flops"))
    return run(model, loader, rule, train=train, evaluate=evaluate, drop=limit, **options)
