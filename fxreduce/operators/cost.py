"""What an operator costs, before anything is measured.

Costs are counted per position of the operator's own output, so that they can be compared without
knowing the input's size; `stride` says how many of its output positions a later operator's has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

from fxreduce.errors import UnsupportedError
from fxreduce.operators.affine import Conv, Operator, ScaleShift

# Moving one activation takes about as long as this many multiply-adds: a core that does tens of
# billions of multiply-adds a second moves a few billion numbers.
MULTIPLY_ADDS_PER_ELEMENT = 16


@runtime_checkable
class CostModel(Protocol):
    """Rates operators; only the order of the rates matters."""

    @property
    def name(self) -> str:
        """By which plans and reports name it."""
        ...

    def cost(self, operator: Operator) -> float:
        """The cost of one position of the operator's output."""
        ...


@dataclass(frozen=True)
class FlopsCost:
    """Multiply-adds plus a term for the activations read and written."""

    name: str = "flops"
    per_element: float = MULTIPLY_ADDS_PER_ELEMENT

    def cost(self, operator: Operator) -> float:
        return multiply_adds(operator) + self.per_element * elements_moved(operator)


_NAMED: dict[str, CostModel] = {"flops": FlopsCost()}


def register_cost(name: str, model: CostModel) -> None:
    """Let `cost=name` stand for a cost model."""
    _NAMED[name] = model


def as_cost(cost: str | CostModel) -> CostModel:
    """The cost model that a name or a cost model stands for.

    Raises:
        UnsupportedError: the name is not known.
    """
    if isinstance(cost, CostModel) and not isinstance(cost, type):
        return cost
    if isinstance(cost, str) and cost in _NAMED:
        return _NAMED[cost]
    raise UnsupportedError(
        f"cost is a CostModel or one of {', '.join(map(repr, _NAMED))}; seen: {cost!r}"
    )


def multiply_adds(operator: Operator) -> int:
    """Multiply-adds for one output position (transposed: for one input position)."""
    return operator.out_channels if isinstance(operator, ScaleShift) else operator.weight.numel()


def elements_moved(operator: Operator) -> int:
    """Activations read and written for one output position, each read once from memory."""
    if isinstance(operator, ScaleShift):
        return 2 * operator.out_channels
    moved = operator.in_channels * prod(operator.stride) + operator.out_channels
    # The bias map of a border is added in a memory pass of its own.
    return moved + (2 * operator.out_channels if operator.border is not None else 0)


def chain_cost(operators: Sequence[Operator], model: CostModel) -> float:
    """The cost of operators one after the other, per output position of the last."""
    total, positions = 0.0, 1
    for operator in reversed(operators):
        total += positions * model.cost(operator)
        if isinstance(operator, Conv) and not operator.transposed:
            positions *= prod(operator.stride)
    return total
