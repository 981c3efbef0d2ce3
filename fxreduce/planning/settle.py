"""How far a sequence of removals goes once the weights are refitted.

A judge looks at the refitted model, which is too dear to make for each removal. So the removals are
chosen first, in their order, and then the longest beginning of the sequence that the judge accepts
is found by bisection. The removal that ends it is left out, and what follows is tried once more.

Fitted weights make up for the affine maps, too. These would bring operators of their own where they
cannot be folded, and biases that padding cuts off; so they are left out where the fit succeeds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from torch import Tensor
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.values import VALUE, by_value
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import CostModel
from fxreduce.passes.linearise import Linearise
from fxreduce.planning.budgets import Judge
from fxreduce.planning.crop import Crops
from fxreduce.planning.example import Example
from fxreduce.planning.execute import merge
from fxreduce.planning.gain import Sites
from fxreduce.planning.held_out import HeldOutError
from fxreduce.planning.refit import Refitted, refit
from fxreduce.verify import Checker

# How often a removal is left out for the sake of those behind it.
_ROUNDS = 3
# How often weights are fitted before the judge looks at them, which is before the end.
_SWEEPS = 1


@dataclass(frozen=True)
class Settled:
    """Which removals stay.

    Attributes:
        sites: their names, in order.
        maps: of each site that is not replaced by the identity, what takes its place.
        cropped: the values of convolutions to crop, see `fxreduce.passes.crop_kernels`.
        weights, reads: the fitted weights, see `fxreduce.passes.refit.Refit`.
        lines: what fitting did.
        refusals: removals that the judge refused, and operators that could not be fitted.
        interrupted: whether Ctrl-C ended it, so that this is the best found so far.
    """

    sites: tuple[str, ...]
    maps: Mapping[str, ScaleShift]
    cropped: tuple[str, ...]
    weights: Mapping[str, Tensor]
    reads: Mapping[str, str]
    lines: tuple[str, ...]
    refusals: tuple[RefusedRewrite, ...]
    interrupted: bool = False


@dataclass
class Settling:
    """What settling works with.

    Attributes:
        prepared: the graph with all its rectifiers, its values named.
        maps: of each site that may go, what takes its place.
        calibration: with held-out batches.
        example: the batch that told the shapes.
        cost: decides which exact merges pay.
        scope: see `fxreduce.planning.refit.refit`.
        judge: accepts or refuses a refitted model.
        disable: names of merging passes to skip.
        verify: whether merges are checked.
        crops: which approximate merges are made, too; None makes none.
    """

    prepared: GraphModule
    maps: Mapping[str, ScaleShift]
    calibration: Calibration
    example: Example
    cost: CostModel
    scope: str
    judge: Judge
    disable: Collection[str] = ()
    verify: bool = True
    crops: Crops | None = None
    _accepted: tuple[Sites, _Form] | None = field(default=None, init=False)
    _errors: HeldOutError = field(init=False)

    def __post_init__(self) -> None:
        self._errors = HeldOutError(self.prepared, self.calibration)

    def run(self, removals: Sequence[Sites]) -> Settled:
        """The longest part of the sequence that the judge accepts; what goes together stays so.

        Raises:
            KeyboardInterrupt: before the judge has accepted anything.
        """
        try:
            return self._run(removals)
        except KeyboardInterrupt as interruption:
            self.calibration.ranks.interrupt(interruption)
            if self._accepted is None:
                raise
            names, form = self._accepted
            return replace(_settled(names, form, []), interrupted=True)

    def _run(self, removals: Sequence[Sites]) -> Settled:
        kept, rest = list[Sites](), list(removals)
        refusals = list[RefusedRewrite]()
        for _ in range(_ROUNDS if rest else 0):
            count, reason = self._longest(kept, rest)
            kept += rest[:count]
            if reason is None:
                rest = []
                break
            refusals.append(_refusal(rest[count], reason))
            if not (rest := rest[count + 1 :]):
                break
        refusals += [_refusal(sites, "removals before it used up the budget") for sites in rest]
        if not kept:
            return Settled((), {}, (), {}, {}, (), tuple(refusals))
        names = tuple(chain.from_iterable(kept))
        best = self._refitted(names)
        if self.judge.after(best.fitted.graph_module) is not None:
            assert self._accepted is not None
            names, best = self._accepted  # the last one is the longest
        return _settled(names, best, refusals)

    def _longest(self, kept: list[Sites], rest: list[Sites]) -> tuple[int, str | None]:
        """How many of the rest may go as well, and why not one more."""
        if (reason := self._refused([*kept, *rest])) is None:
            return len(rest), None
        low, high = 0, len(rest)  # `low` of them are accepted, `high` are not
        while high - low > 1:
            middle = (low + high) // 2
            found = self._refused([*kept, *rest[:middle]])
            low, high = (middle, high) if found is None else (low, middle)
            reason = found or reason
        return low, reason

    def _refused(self, removals: Sequence[Sites]) -> str | None:
        """Why the judge refuses the model without these sites; None where it does not."""
        if type(self.judge).after is Judge.after:
            return None  # it accepts all
        names = tuple(chain.from_iterable(removals))
        found = self._refitted(names, sweeps=_SWEEPS)
        reason = self.judge.after(found.fitted.graph_module)
        if reason is None:
            self._accepted = names, found
        return reason

    def _refitted(self, sites: Sequence[str], *, sweeps: int | None = None) -> _Form:
        """The refitted model without these sites, in the form that serves best.

        Without fitted weights that is the one with the affine maps, or with the identity where
        that does better.
        """
        maps = {site: self.maps[site] for site in sites}
        with_maps = Linearise(tuple(sites), maps).run(self.prepared).graph_module
        plain = Linearise(tuple(sites)).run(self.prepared).graph_module
        # Merging changes nothing, takes long, and makes weights where these share the original's.
        mapped, bare = self._errors(with_maps), self._errors(plain)
        error = min(mapped, bare)
        for values, start in self._starts(plain, sites):
            fitted = self._fitted(self._merged(start), error, sweeps)
            if fitted.weights or (not values and bare < mapped):
                return _Form({}, _places(values, start, fitted), fitted)
        return _Form(maps, {}, self._fitted(self._merged(with_maps), error, sweeps))

    def _starts(
        self, plain: GraphModule, sites: Sequence[str]
    ) -> Iterator[tuple[tuple[str, ...], GraphModule]]:
        """What fitting may start from, the cheaper first, with the values cropped in it."""
        if self.crops is not None:
            values, cropped = self.crops.cropped(plain, sites, self.cost, self.disable)
            if values:
                yield values, cropped
        yield (), plain

    def _merged(self, unmerged: GraphModule) -> _Merged:
        example = self.example
        check = Checker(unmerged, example.forward, example.batch) if self.verify else None
        merged = merge(unmerged, self.cost, example, disable=self.disable, check=check)
        return _Merged(unmerged, merged.graph_module)

    def _fitted(self, pair: _Merged, error: float, sweeps: int | None) -> Refitted:
        return refit(
            self.prepared,
            pair.unmerged,
            pair.merged,
            self.calibration,
            error,
            self.scope,
            sweeps=sweeps,
            errors=self._errors,
        )


@dataclass(frozen=True)
class _Merged:
    """A graph without some sites, and what it was merged to."""

    unmerged: GraphModule
    merged: GraphModule


@dataclass(frozen=True)
class _Form:
    """A refitted model.

    Attributes:
        maps: of sites that are not replaced by the identity, what takes their place.
        cropped: the values of the cropped convolutions, and the value of what each merged to.
        fitted: the weights.
    """

    maps: Mapping[str, ScaleShift]
    cropped: Mapping[str, str]
    fitted: Refitted


def _settled(names: Sites, form: _Form, refusals: list[RefusedRewrite]) -> Settled:
    fitted = form.fitted
    return Settled(
        names,
        form.maps,
        tuple(form.cropped),
        fitted.weights,
        fitted.reads,
        _lines(form),
        (*refusals, *fitted.refusals),
    )


def _places(values: tuple[str, ...], start: GraphModule, fitted: Refitted) -> dict[str, str]:
    """For each value the first fitted one that it has become part of, else itself."""
    named, places = by_value(start), dict[str, str]()
    for value in values:
        node = named.get(value)
        while node is not None and node.meta.get(VALUE) not in fitted.unexplained:
            node = next(iter(node.users)) if len(node.users) == 1 else None
        places[value] = value if node is None else node.meta[VALUE]
    return places


def _lines(form: _Form) -> tuple[str, ...]:
    """What was done, for the report."""
    fitted = form.fitted
    line = (
        f"{len(fitted.weights)} operators refitted: squared error of the output on held-out "
        f"batches {fitted.error_before:.3g} -> {fitted.error:.3g}"
    )
    approximate = [
        f"{value} is approximate: one convolution in place of two, with a kernel no larger than "
        f"theirs; {fitted.unexplained[place]:.2%} of the variance is unexplained"
        for value, place in form.cropped.items()
        if place in fitted.unexplained
    ]
    return (line, *approximate)


def _refusal(sites: Sites, reason: str) -> RefusedRewrite:
    return RefusedRewrite(" + ".join(sites), reason, Linearise.name)
