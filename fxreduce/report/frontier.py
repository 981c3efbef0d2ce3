"""The frontier of a run as an SVG chart: what the budget measured, against what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fxreduce.report.trial import Trial

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44


def frontier(trials: Sequence[Trial]) -> str:
    """A chart of trials of one measure: discs where they were accepted, crosses where not."""
    removed = [trial.removed for trial in trials]
    values = [trial.value for trial in trials]
    most, low, high = max(1, *removed), min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room

    def across(count: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * count / most

    def down(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    parts = []
    for step in range(5):
        value = low + (high - low) * step / 4
        y = down(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{value:.4g}</text>')
    every = -(-most // 12)
    parts += [
        f'<text x="{across(count):.1f}" y="{_HEIGHT - 26}">{count}</text>'
        for count in range(0, most + 1, every)
    ]
    accepted = sorted({(t.removed, t.value) for t in trials if t.accepted})
    line = "L".join(f"{across(count):.1f} {down(value):.1f}" for count, value in accepted)
    parts.append(f'<path class="line" d="M{line}"/>' if line else "")
    parts += [_mark(trial, across(trial.removed), down(trial.value)) for trial in trials]
    measure = escape(trials[0].measure)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 6}">rectifiers removed</text>')
    return (
        f'<figure><figcaption>{measure}</figcaption><svg class="chart" role="img" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{measure} against rectifiers removed">'
        f"{''.join(parts)}</svg></figure>"
    )


def _mark(trial: Trial, x: float, y: float) -> str:
    fate = "accepted" if trial.accepted else "refused"
    told = f"<title>{trial.removed} removed: {trial.value:.6g}, {fate}</title>"
    if trial.accepted:
        return f'<circle class="accepted" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{told}</circle>'
    cross = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
    return f'<path class="refused" d="{cross}">{told}</path>'
