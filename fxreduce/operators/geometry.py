"""Merging geometries once: planners ask for the same ones again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache, wraps
from typing import Any

from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, Refusal

Merge = Callable[[Operator, Operator], Operator | Refusal]
_KNOWN = 1 << 12


@dataclass(frozen=True)
class _Geometry:
    """An operator on the meta device, equal to all of the same kind and shapes."""

    key: tuple[Any, ...]
    operator: Operator = field(compare=False)

    @classmethod
    def of(cls, operator: Operator) -> _Geometry:
        values = (getattr(operator, each.name) for each in fields(operator))
        shapes = (value.shape if isinstance(value, Tensor) else value for value in values)
        return cls((type(operator), *shapes), operator)


def once_for_geometries(merge: Merge) -> Merge:
    """The function, with what it gives for operators on the meta device kept by their shapes."""

    @lru_cache(_KNOWN)
    def known(f: _Geometry, g: _Geometry) -> Operator | Refusal:
        return merge(f.operator, g.operator)

    @wraps(merge)
    def merged(f: Operator, g: Operator) -> Operator | Refusal:
        if not (_is_geometry(f) and _is_geometry(g)):
            return merge(f, g)
        return known(_Geometry.of(f), _Geometry.of(g))

    return merged


def _is_geometry(operator: Operator) -> bool:
    return (operator.weight if isinstance(operator, Conv) else operator.scale).is_meta
