"""How far two outputs are apart, and how far they may be."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from fxreduce.errors import EquivalenceError
from fxreduce.graph.outputs import leaves_of

# Merging is arithmetic in float64. What remains is the rounding of merged weights to the model's
# dtype, once for each of a chain of layers, and for float64 the order of summation. Half precision
# gets a tighter multiple, as a loose one would excuse anything; its merging is proved in float64.
FLOAT64_TOLERANCE = 1e-9
FLOAT32_ROUNDINGS = 256
HALF_ROUNDINGS = 32


@dataclass(frozen=True)
class Difference:
    """The largest deviation, absolute and relative to the largest value of the reference."""

    max_abs: float
    max_rel: float


def tolerance(dtype: torch.dtype) -> float:
    """The relative deviation that rounding to `dtype` explains."""
    roundings = HALF_ROUNDINGS if is_half(dtype) else FLOAT32_ROUNDINGS
    return max(FLOAT64_TOLERANCE, roundings * torch.finfo(dtype).eps)


def is_half(dtype: torch.dtype) -> bool:
    """Whether the dtype is coarser than float32."""
    return torch.finfo(dtype).eps > torch.finfo(torch.float32).eps


def model_dtype(module: nn.Module) -> torch.dtype:
    """The least precise floating dtype of the module's parameters; float64 where it has none."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def difference(reference: Any, other: Any) -> Difference:
    """The largest deviation over all tensors of two outputs of one structure.

    Raises:
        EquivalenceError: the structures, or the shapes of two tensors, differ.
    """
    max_abs = max_rel = 0.0
    for a, b in paired(reference, other):
        apart = _deviation(a, b)
        largest = _largest(a)
        max_abs = max(max_abs, apart)
        max_rel = max(max_rel, apart / largest if largest > 0 else apart)
    return Difference(max_abs, max_rel)


def paired(reference: Any, other: Any) -> list[tuple[Tensor, Tensor]]:
    """The tensors of two outputs of one structure, each with the one in its place.

    Raises:
        EquivalenceError: the structures, or the shapes of two tensors, differ.
    """
    places, leaves = leaves_of(reference)
    other_places, others = leaves_of(other)
    if places != other_places:
        raise EquivalenceError(
            f"the outputs have different structures: {', '.join(places) or 'nothing'} and "
            f"{', '.join(other_places) or 'nothing'}"
        )
    pairs: list[tuple[Tensor, Tensor]] = []
    for a, b in zip(leaves, others, strict=True):
        if not isinstance(a, Tensor):
            _require_readable(a)
            continue
        if not isinstance(b, Tensor) or a.shape != b.shape:
            shape = tuple(b.shape) if isinstance(b, Tensor) else type(b).__name__
            raise EquivalenceError(f"an output of shape {tuple(a.shape)} became {shape}")
        pairs.append((a, b))
    return pairs


def _require_readable(value: Any) -> None:
    """Raise EquivalenceError where a value may hold tensors that nothing can compare."""
    if hasattr(value, "__dict__") and not callable(value):
        raise EquivalenceError(
            f"what an output of class {type(value).__name__} holds cannot be compared; return "
            "tensors, tuples, lists, dictionaries or dataclasses, or register the class with "
            "torch.utils._pytree.register_pytree_node"
        )


def _deviation(a: Tensor, b: Tensor) -> float:
    """The largest |a - b|; entries that are equal count as 0 also where they are not finite."""
    if a.numel() == 0:
        return 0.0
    wide = torch.promote_types(torch.float64, a.dtype)
    apart = (a.to(wide) - b.to(wide)).abs()
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, torch.zeros_like(apart), apart)
    return float(apart.max().nan_to_num(nan=inf, posinf=inf))


def _largest(a: Tensor) -> float:
    finite = a[a.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0
