"""What a budget measured on its way: the points of the frontier that a report shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """What a budget measured of one model.

    Attributes:
        measure: what it measured, in words.
        removed: how many rectifiers the model was without.
        value: what it found.
        accepted: whether that was good enough.
    """

    measure: str
    removed: int
    value: float
    accepted: bool
