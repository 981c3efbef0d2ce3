"""Budgets: how many rectifiers may go, or what their removal may cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from numbers import Integral, Real
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.calibration.ranks import ALONE, Ranks
from fxreduce.errors import CalibrationError, PlanError
from fxreduce.extensions import load_extensions
from fxreduce.graph.rectifiers import find_sites
from fxreduce.planning.measure import SiteStatistics
from fxreduce.report.trial import Trial

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What a budget may look at when planning begins.

    Attributes:
        original: the model with all its rectifiers.
        sites: how many sites may be removed.
        outputs: runs a module on the held-out calibration batches and returns its outputs, or what
            a second argument makes of each. Several processes run their batches each, and get the
            outputs of all.
        speedup: how many times as cheap an unmerged graph is, once merged, as the original
            unmerged, by the plan's cost model.
        ranks: the processes that plan together; what a judge says must be the same on all.
    """

    original: GraphModule
    sites: int
    outputs: Callable[..., Sequence[Any]]
    speedup: Callable[[GraphModule], float]
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Shortfall:
    """What a budget asked for and planning did not reach.

    Attributes:
        reason: in words, for the report.
        keep: how many of the removals come nearest to it.
        graph_module: the graph after so many.
    """

    reason: str
    keep: int
    graph_module: GraphModule


class Judge:
    """Says whether removals go on; a budget makes one for each planning. The base allows all."""

    def enough(self, removed: int) -> str | None:  # noqa: ARG002
        """Why, after so many removals, no further site is measured; None goes on."""
        return None

    def before(self, chosen: SiteStatistics) -> str | None:  # noqa: ARG002
        """Why the chosen site, the next by importance, must stay; None lets it be tried."""
        return None

    def after(self, candidate: GraphModule) -> str | None:  # noqa: ARG002
        """Why the model without the chosen site is not acceptable; None accepts it."""
        return None

    def satisfied(self, current: GraphModule, removed: int) -> str | None:  # noqa: ARG002
        """Why the model, as far as it is reduced, is all that was asked for; None goes on.

        Asked at the beginning and after each removal.
        """
        return None

    def most(self) -> int | None:
        """How many removals it asks for at most, where it can tell: for the time left."""
        return None

    def shortfall(self) -> Shortfall | None:
        """At the end: what was asked for and not reached, if so."""
        return None

    def trials(self) -> tuple[Trial, ...]:
        """At the end: what was measured of the original and of the models that were tried."""
        return ()


@dataclass(frozen=True)
class _Trials:
    """Keeps what a judge measures, beside how many of the sites the model was without."""

    measure: str
    sites: int
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def begin(cls, measure: str, original: GraphModule, value: float) -> _Trials:
        trials = cls(measure, len(find_sites(original)))
        trials.add(original, value, True)
        return trials

    def add(self, candidate: GraphModule, value: float, accepted: bool) -> bool:
        """Keep what was measured; returns whether it was accepted."""
        removed = self.sites - len(find_sites(candidate))
        self.trials.append(Trial(self.measure, removed, value, accepted))
        return accepted


@runtime_checkable
class Budget(Protocol):
    """A rule that ends planning."""

    def begin(self, context: Context) -> Judge:
        """A judge for one planning.

        Raises:
            PlanError: the budget does not fit the model.
        """
        ...


class Combinable:
    """A budget that combines with others: `a & b` allows what both allow."""

    @property
    def for_speed(self) -> bool:
        """Whether it bounds what removals cost or gain, so that speed is what is wanted of them.

        Not, where it counts rectifiers or bounds their entropy.
        """
        return False

    def __and__(self, other: object) -> All:
        return All((*_parts(self), *_parts(other)))

    def __rand__(self, other: object) -> All:
        return All((*_parts(other), *_parts(self)))


@dataclass(frozen=True)
class All(Combinable):
    """Several budgets together, what `a & b` stands for.

    A rectifier goes only if all of them allow it, and planning ends as soon as one of them has
    enough: `MaxDrop(0.01, evaluate) & Speedup(1.5)` removes until the model is 1.5 times as cheap,
    and nothing that costs more than 0.01. They are asked from left to right: write what is quick to
    tell first.
    """

    budgets: tuple[Budget, ...]

    @property
    def for_speed(self) -> bool:
        return any(is_for_speed(budget) for budget in self.budgets)

    def begin(self, context: Context) -> Judge:
        return _AllJudge(tuple(budget.begin(context) for budget in self.budgets))


@dataclass(frozen=True)
class _AllJudge(Judge):
    """Hands on the first objection of its judges."""

    judges: tuple[Judge, ...]

    def enough(self, removed: int) -> str | None:
        return _first(judge.enough(removed) for judge in self.judges)

    def before(self, chosen: SiteStatistics) -> str | None:
        return _first(judge.before(chosen) for judge in self.judges)

    def after(self, candidate: GraphModule) -> str | None:
        return _first(judge.after(candidate) for judge in self.judges)

    def satisfied(self, current: GraphModule, removed: int) -> str | None:
        # All are asked: each keeps its own account of what was reached.
        return _first([judge.satisfied(current, removed) for judge in self.judges])

    def most(self) -> int | None:
        known = [most for judge in self.judges if (most := judge.most()) is not None]
        return min(known, default=None)

    def shortfall(self) -> Shortfall | None:
        return _first(judge.shortfall() for judge in self.judges)

    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for judge in self.judges for trial in judge.trials())


def _first(found: Iterable[T | None]) -> T | None:
    return next((each for each in found if each is not None), None)


def is_for_speed(budget: Budget) -> bool:
    """Whether speed is what the budget wants; a budget of a user's own says so by `for_speed`."""
    return bool(getattr(budget, "for_speed", False))


def _parts(budget: object) -> tuple[Budget, ...]:
    whole = as_budget(budget)
    return whole.budgets if isinstance(whole, All) else (whole,)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, Python's or NumPy's; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return is_number(value) and isinstance(value, Integral)


@dataclass(frozen=True)
class Remove(Combinable, Judge):
    """Remove `n` rectifiers."""

    n: int

    def __post_init__(self) -> None:
        if not _is_whole(self.n) or self.n < 0:
            raise PlanError(
                f"a budget removes 0 or more rectifiers, a whole number of them; seen: {self.n!r}"
            )

    def begin(self, context: Context) -> Judge:
        if self.n > context.sites:
            raise PlanError(
                f"the budget removes {self.n} rectifiers, but {context.sites} can be removed; "
                "lower it, or look at include, exclude and fxreduce.analyze(...).table()"
            )
        return self

    def enough(self, removed: int) -> str | None:
        return f"{self.n} are removed, as the budget says" if removed >= self.n else None

    def most(self) -> int | None:
        return self.n


@dataclass(frozen=True)
class Fraction(Combinable):
    """Remove the fraction `f` of the rectifiers, rounded down."""

    f: float

    def __post_init__(self) -> None:
        if not is_number(self.f) or not 0 <= self.f <= 1:
            raise PlanError(
                f"a fraction of the rectifiers lies between 0 and 1; seen: {self.f!r}. For a "
                "number of rectifiers pass an int"
            )

    def begin(self, context: Context) -> Judge:
        # The least float above absorbs what binary fractions lack: 0.29 of 100 is 29.
        return Remove(int(self.f * context.sites * (1 + 1e-12)))


@dataclass(frozen=True)
class EntropyBelow(Combinable, Judge):
    """Remove rectifiers as long as the lowest entropy lies below `h` bits."""

    h: float

    def __post_init__(self) -> None:
        if not is_number(self.h) or not self.h >= 0:
            raise PlanError(f"an entropy is a number of bits, 0 or more; seen: {self.h!r}")

    def begin(self, context: Context) -> Judge:  # noqa: ARG002
        return self

    def before(self, chosen: SiteStatistics) -> str | None:
        if chosen.entropy < self.h:
            return None
        return f"{chosen.name} has {chosen.entropy:.4f} bits, not below {self.h:g}"


@dataclass(frozen=True)
class MaxDrop(Combinable):
    """Remove rectifiers as long as `evaluate` falls by at most `drop` from the original's value.

    `evaluate(module) -> float` is the user's, higher is better; it gets a graph module in eval
    mode: unmerged, or merged where weights are refitted. Of several processes each calls it, and
    the mean counts.
    """

    drop: float
    evaluate: Callable[[nn.Module], float]

    def __post_init__(self) -> None:
        if not is_number(self.drop) or not self.drop >= 0:
            raise PlanError(f"a drop is a number, 0 or more; seen: {self.drop!r}")
        if not callable(self.evaluate):
            raise PlanError(
                "MaxDrop's evaluate is a function (module) -> float, higher is better; seen: "
                f"{self.evaluate!r}"
            )

    @property
    def for_speed(self) -> bool:
        return True

    def begin(self, context: Context) -> Judge:
        original = context.ranks.mean("evaluate", self.value(context.original))
        seen = _Trials.begin("evaluate", context.original, original)
        return _DropJudge(self, original, seen, context.ranks)

    def value(self, module: nn.Module) -> float:
        """What `evaluate` says of a module.

        Raises:
            PlanError: it is not a number.
        """
        returned = self.evaluate(module)
        try:
            value = float(returned)
        except (TypeError, ValueError):
            value = nan
        if isnan(value):
            raise PlanError(
                "MaxDrop's evaluate(module) must return a number, higher is better; it returned "
                f"{returned!r}"
            )
        return value


@dataclass(frozen=True)
class _DropJudge(Judge):
    budget: MaxDrop
    original: float
    seen: _Trials
    ranks: Ranks

    def trials(self) -> tuple[Trial, ...]:
        return tuple(self.seen.trials)

    def after(self, candidate: GraphModule) -> str | None:
        value = self.ranks.mean("evaluate", self.budget.value(candidate))
        if self.seen.add(candidate, value, self.original - value <= self.budget.drop):
            return None
        return (
            f"without it evaluate falls from {self.original:.4g} to {value:.4g}, by more than "
            f"{self.budget.drop:g}"
        )


@dataclass(frozen=True)
class Fidelity(Combinable):
    """Remove rectifiers as long as the prediction is the original's at least this often.

    Label-free: predictions are compared on held-out calibration batches, of all processes where
    there are several. A prediction is the argmax over the classes: the last axis of a 2-D or 3-D
    output, axis 1 of (N, C, H, W).
    """

    min_agreement: float

    def __post_init__(self) -> None:
        if not is_number(self.min_agreement) or not 0 <= self.min_agreement <= 1:
            raise PlanError(f"an agreement lies between 0 and 1; seen: {self.min_agreement!r}")

    @property
    def for_speed(self) -> bool:
        return True

    def begin(self, context: Context) -> Judge:
        expected = _predictions(context.outputs, context.original)
        seen = _Trials.begin("agreement with the original", context.original, 1.0)
        return _FidelityJudge(self.min_agreement, expected, context.outputs, seen)


@dataclass(frozen=True)
class _FidelityJudge(Judge):
    min_agreement: float
    expected: Tensor
    outputs: Callable[..., Sequence[Any]]
    seen: _Trials

    def trials(self) -> tuple[Trial, ...]:
        return tuple(self.seen.trials)

    def after(self, candidate: GraphModule) -> str | None:
        same = _predictions(self.outputs, candidate) == self.expected
        agreement = float(same.double().mean())
        if self.seen.add(candidate, agreement, agreement >= self.min_agreement):
            return None
        return (
            f"without it {agreement:.2%} of {same.numel()} predictions are the original's, "
            f"below {self.min_agreement:.2%}"
        )


def _predictions(outputs: Callable[..., Sequence[Any]], module: nn.Module) -> Tensor:
    """The predictions on all batches, in one row."""
    return torch.cat(list(outputs(module, lambda output: _argmax(output).flatten())))


def _argmax(output: Any) -> Tensor:
    scores = next(
        (
            leaf
            for leaf in pytree.tree_leaves(output)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1
        ),
        None,
    )
    axis = 1 if scores is not None and scores.dim() > 3 else -1
    if scores is None or scores.shape[axis] < 2:
        seen = "no tensor of scores" if scores is None else f"scores of shape {tuple(scores.shape)}"
        raise PlanError(
            "Fidelity (budget 'auto') compares predictions, so that the output must hold the "
            f"scores of at least two classes; seen: {seen}. Use MaxDrop(drop, evaluate) or a "
            "number of rectifiers"
        )
    if not bool(scores.isfinite().all()):
        raise CalibrationError(
            "Fidelity (budget 'auto') compares predictions, so that the scores must be finite; on "
            "a held-out calibration batch there are NaN or infinity among them. Check the data"
        )
    return scores.argmax(axis)


_NAMED: dict[str, Budget] = {"auto": Fidelity(0.99)}


def register_budget(name: str, budget: Budget) -> None:
    """Let `budget=name` stand for a budget.

    Args:
        name: any that is not a number.
        budget: an object with a method `begin(context) -> Judge`, see `Budget`.

    Raises:
        PlanError: it is no budget.
    """
    if not _is_budget(budget):
        raise PlanError(f"a budget has a method begin(context) -> Judge; seen: {budget!r}")
    _NAMED[name] = budget


def budget_names() -> tuple[str, ...]:
    """The names that budgets are known by."""
    load_extensions("budgets")
    return tuple(_NAMED)


def _is_budget(value: object) -> TypeGuard[Budget]:
    return isinstance(value, Budget) and not isinstance(value, type)


def as_budget(budget: object) -> Budget:
    """The budget that an int, a float, a name or a budget stands for.

    Raises:
        PlanError: it is none of these.
    """
    if _is_whole(budget):
        return Remove(int(budget))
    if is_number(budget):
        return Fraction(float(budget))
    if isinstance(budget, str) and budget in budget_names():
        return _NAMED[budget]
    if _is_budget(budget):
        return budget
    raise PlanError(
        "a budget is an int (rectifiers), a float (fraction of them), a Budget or one of "
        f"{', '.join(map(repr, _NAMED))}; seen: {budget!r}"
    )
