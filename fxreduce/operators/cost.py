"""What an operator costs: the cost models, and the one that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, TypeGuard, runtime_checkable

from fxreduce.errors import UnsupportedError
from fxreduce.extensions import load_extensions
from fxreduce.operators.affine import Conv, Operator
from fxreduce.operators.setting import Setting, output_shape, positions, settings_along

# Moving one activation takes about as long as this many multiply-adds: a core that does tens of
# billions of multiply-adds a second moves a few billion numbers.
MULTIPLY_ADDS_PER_ELEMENT = 16
# What a call on a slice of one to three rows takes for each sample beside the multiply-adds that it
# counts: starting, and gathering and scattering short rows. 1 to 4 million were measured, for 3 to
# 64 channels and sides of 40 to 224.
MULTIPLY_ADDS_PER_SLICE = 2_000_000


@runtime_checkable
class CostModel(Protocol):
    """Rates operators: a merge is made if the merged operator costs less than what it replaces.

    A cost model of your own is any object with these two members; give it as `cost=` or register
    it by name. Costs are added up over operators, in a unit of your choice.
    """

    @property
    def name(self) -> str:
        """By which plans and reports name it."""
        ...

    def cost(self, operator: Operator, setting: Setting) -> float:
        """The cost of one call.

        Args:
            operator: its geometry: tensors on the meta device, which have shapes and no values.
            setting: the input that it gets.
        """
        ...


Candidate = tuple[Operator, Setting]


@runtime_checkable
class ComparingCostModel(CostModel, Protocol):
    """A cost model that rates candidates better together than one by one, as measuring does."""

    def costs(self, candidates: Sequence[Candidate]) -> list[float]:
        """The cost of each."""
        ...


@dataclass(frozen=True)
class FlopsCost:
    """Multiply-adds plus terms for the activations read and written, and for cutting slices.

    Attributes:
        per_element: multiply-adds that take as long as moving one activation.
        per_slice: multiply-adds that a call on a thin slice of a sample costs beside its own.
    """

    name: str = "flops"
    per_element: float = MULTIPLY_ADDS_PER_ELEMENT
    per_slice: float = MULTIPLY_ADDS_PER_SLICE

    def cost(self, operator: Operator, setting: Setting) -> float:
        moved = self.per_element * elements_moved(operator, setting)
        samples = prod(setting.shape[: -operator.rank - 1])
        slices = self.per_slice * samples if setting.sliced else 0
        return multiply_adds(operator, setting) + moved + slices


_NAMED: dict[str, CostModel] = {"flops": FlopsCost()}


def register_cost(name: str, model: CostModel) -> None:
    """Let `cost=name` stand for a cost model, as does its own name, which plans keep.

    Args:
        name: any.
        model: see `CostModel`.

    Raises:
        UnsupportedError: it is no cost model, or another one is known by its own name.
    """
    if not _is_model(model):
        raise UnsupportedError(
            "a cost model has a name and a method cost(operator, setting) -> float; seen: "
            f"{model!r}"
        )
    if model.name != name and _NAMED.get(model.name, model) != model:
        raise UnsupportedError(
            f"a plan finds its cost model by the model's own name, so that no two can share one; "
            f"another is known as {model.name!r}: give this one a name of its own"
        )
    _NAMED[model.name] = _NAMED[name] = model


def cost_names() -> tuple[str, ...]:
    """The names that cost models are known by."""
    load_extensions("costs")
    return tuple(_NAMED)


def _is_model(value: object) -> TypeGuard[CostModel]:
    return isinstance(value, CostModel) and not isinstance(value, type)


def as_cost(cost: str | CostModel) -> CostModel:
    """The cost model that a name or a cost model stands for.

    Raises:
        UnsupportedError: the name is not known.
    """
    if _is_model(cost):
        return cost
    if cost in cost_names():  # compared, as what is no name may not be hashable
        return _NAMED[cost]
    raise UnsupportedError(
        f"cost is a CostModel or one of {', '.join(map(repr, _NAMED))}; seen: {cost!r}"
    )


def multiply_adds(operator: Operator, setting: Setting) -> int:
    """Multiply-adds of one call; those of a border are an image's alone and left out."""
    out = output_shape(operator, setting.shape)
    if not isinstance(operator, Conv):
        return prod(out)
    taken = setting.shape if operator.transposed else out
    return positions(operator, taken) * operator.weight.numel()


def elements_moved(operator: Operator, setting: Setting) -> int:
    """Activations read and written by one call, each read once from memory."""
    written = prod(output_shape(operator, setting.shape))
    has_border = isinstance(operator, Conv) and operator.border is not None
    # The bias map of a border is added in a memory pass of its own.
    return prod(setting.shape) + (3 if has_border else 1) * written


def costs(model: CostModel, candidates: Sequence[Candidate]) -> list[float]:
    """The costs of operators that are to be compared."""
    if isinstance(model, ComparingCostModel):
        return model.costs(candidates)
    return [model.cost(*candidate) for candidate in candidates]


def chain_cost(operators: Sequence[Operator], setting: Setting, model: CostModel) -> float:
    """The cost of operators one after the other, the first one's setting given."""
    along = zip(operators, settings_along(operators, setting), strict=True)
    return sum(costs(model, list(along)))
