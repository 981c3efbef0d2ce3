"""Reasons against a merge that every merging pass asks for, in the same words."""

from __future__ import annotations

from fxreduce.graph.affine import AffineCall
from fxreduce.graph.aliases import Aliases
from fxreduce.operators.affine import Refusal

NUMBERS_ALONE = (
    "neither has weights, and numbers, poolings and pads do not tell how many channels of which "
    "dtype they will meet"
)


def hazard(aliases: Aliases, call: AffineCall) -> Refusal | None:
    """Why merging the call would change what other nodes read, or freeze what changes, if so."""
    if aliases.others_see(call.node):
        return Refusal("it overwrites a tensor that others read")
    if changed := aliases.changed_constant(call.node):
        return Refusal(f"the graph overwrites {changed.target}, which it reads")
    return None


def not_cheaper(merged: float, apart: float, unit: str) -> str:
    """The reason for a merge that does not pay, with both figures."""
    return f"merging does not pay: {_short(merged)} merged, {_short(apart)} apart ({unit})"


def _short(figure: float) -> str:
    """Four digits of a figure, with a suffix for thousands, millions and so on."""
    for suffix in ("", " k", " M", " G"):
        if abs(figure) < 1000:
            return f"{figure:.4g}{suffix}"
        figure /= 1000
    return f"{figure:.4g} T"
