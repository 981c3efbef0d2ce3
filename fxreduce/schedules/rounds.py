"""What a schedule did, round by round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Round:
    """One round: what went, and what the network was worth after training again.

    Attributes:
        number: 0 is the dense network.
        accuracy: what `evaluate` said at its end.
        removed: names of the sites that went in this round, in order.
        left: how many sites are left.
        pruned: how many weights were masked in this round.
        scores: what the rule gave each site that might have gone, the lowest goes first. A round in
            which weights are pruned has them, too.
        why: the rule's words for its choice.
        allowed: whether the limits on accuracy and the budget bear the round.
        objection: what does not bear it.
        trainings: how many times `train` was called in the round.
        refused: why sites that were chosen stay, by name.
    """

    number: int
    accuracy: float
    removed: tuple[str, ...] = ()
    left: int = 0
    pruned: int = 0
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    why: str = ""
    allowed: bool = True
    objection: str | None = None
    trainings: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The round as JSON has it, which knows no infinity: that is a string there."""
        return asdict(self) | {
            "removed": list(self.removed),
            "accuracy": _number(self.accuracy),
            "scores": {name: _number(score) for name, score in self.scores.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Round:
        """The round that `to_dict` was called on."""
        return cls(
            **{
                **content,
                "removed": tuple(content["removed"]),
                "accuracy": float(content["accuracy"]),
                "scores": {name: float(score) for name, score in content["scores"].items()},
            }
        )


def _number(value: float) -> float | str:
    return value if isfinite(value) else str(value)
