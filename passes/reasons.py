"""Reasons against a merge that every merging pass asks for, in the same words."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxreduce.graph.affine import AffineCall
from fxreduce.graph.aliases import Aliases
from fxreduce.operators.affine import Operator, Refusal, values_are_open

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


# No dtype with the exponents of float32 is looked at: weights of a network stay far below 1e38.
_ALWAYS_ENOUGH = 1e38


def overflow(merge: Callable[[], Operator | Refusal], like: Tensor | None) -> Refusal | None:
    """Why the dtype of `like` cannot hold the merged operator, if it cannot.

    Args:
        merge: merges the operators with their values; called only where the dtype holds so little
            that a product of weights may be too large for it, which is float16.
    """
    if like is None or not like.is_floating_point() or like.is_meta or values_are_open():
        return None
    most = torch.finfo(like.dtype).max
    merged = None if most > _ALWAYS_ENOUGH else merge()
    for name, value in vars(merged).items() if merged is not None else ():
        largest = float(value.abs().max()) if isinstance(value, Tensor) and value.numel() else 0.0
        if largest > most:
            return Refusal(
                f"the merged {name} holds {largest:.4g}, and {like.dtype} holds {most:.5g} at most"
            )
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
