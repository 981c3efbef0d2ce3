"""Fitting the weights of a reduced model to what the original model computed.

Operator by operator, front to back: each is fitted to the original's value at its own place, from
what the reduced model, refitted so far, feeds it. So errors are absorbed instead of carried on. In
a second sweep operators before a sum are fitted to the sum, so that they make up for what its other
operand carries on, a skip for instance. That need not do better, as what follows may have made up
for it; the sweep counts that leaves the least error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxreduce.calibration.arguments import arguments
from fxreduce.calibration.batches import Calibration
from fxreduce.calibration.ranks import Ranks
from fxreduce.graph.affine import AffineCall
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import SHAPE
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.regions import sum_operands
from fxreduce.graph.run import Run
from fxreduce.graph.shapes import copied
from fxreduce.graph.values import VALUE, by_value, crosses
from fxreduce.operators.affine import Conv, Operator, Refusal, as_conv, in_double
from fxreduce.operators.patches import weights, with_weights
from fxreduce.operators.ridge import FREE, Equations, Fit, Tether, rows_for
from fxreduce.passes.refit import Refit, fittable, refitted
from fxreduce.planning.held_out import HeldOutError
from fxreduce.progress import track

SCOPES = ("merged", "downstream")
# Bytes of the values of batches that wait at an operator for their turn at the next one. Batches
# beyond that are run again from the start for every operator.
CACHE = 1 << 28
# Positions of an image are much alike: a fit takes at most one in so many, and of so many images at
# least, before it does with fewer images than there are.
_SPARSE, _IMAGES = 4, 1024
# One sample in so many is held out to choose the strength of the ridge.
_HELD_OUT_EVERY = 4
# Values that differ by more, relative to the largest one, are not the same value; and those of the
# original and the reduced graph that differ by less did not change.
_SAME, _UNCHANGED = 1e-3, 1e-5
# Sweeps go on while each takes at least this part off the error on held-out batches.
_GAIN, _MOST_SWEEPS = 0.02, 4


@dataclass(frozen=True)
class Refitted:
    """What fitting gave.

    Attributes:
        graph_module: the reduced model with fitted weights.
        weights: by the name of an operator's value, see `fxreduce.passes.refit.Refit`.
        error, error_before: the squared error of the output on held-out batches, relative to the
            original's square.
        unexplained: of each fitted operator, the part of the variance of the original's value that
            the fit leaves on held-out samples.
        refusals: operators that could not be fitted, with the reasons.
    """

    graph_module: GraphModule
    weights: Mapping[str, Tensor]
    error: float
    error_before: float
    unexplained: Mapping[str, float]
    refusals: tuple[RefusedRewrite, ...]

    @property
    def reads(self) -> dict[str, str]:
        """The name of the value that each fitted operator reads."""
        named = by_value(self.graph_module)
        calls = {value: fittable(self.graph_module, named[value]) for value in self.weights}
        return {
            value: call.input.meta.get(VALUE, "")
            for value, call in calls.items()
            if isinstance(call, AffineCall)
        }


@dataclass(frozen=True)
class _Place:
    """An operator of the reduced graph to fit.

    Attributes:
        value: the name of its value.
        call: the operator.
        original: the node of the original with the value that it is fitted to.
        samples, positions: how many a batch has of each to fit to, by the first one.
        other: what is added to its value before that is compared with the original's.
    """

    value: str
    call: AffineCall
    original: Node
    samples: int
    positions: int
    other: Node | None = None


@torch.no_grad()
def refit(
    original: GraphModule,
    unmerged: GraphModule,
    merged: GraphModule,
    calibration: Calibration,
    error: float,
    scope: str = "downstream",
    *,
    sweeps: int | None = None,
    tether: Tether = FREE,
    errors: HeldOutError | None = None,
) -> Refitted:
    """Fit the weights of a merged graph to the original's values.

    Args:
        original: with all its rectifiers, its values named.
        unmerged: the same with rectifiers replaced, its values named alike.
        merged: what `unmerged` was merged to.
        calibration: with held-out batches.
        error: the held-out error of the model that takes over where fitted weights do no better.
        scope: "merged" fits the operators in whose region a rectifier was removed, "downstream"
            all that read what these changed as well.
        sweeps: how often at most; None goes on while the error on held-out batches falls.
        tether: bounds each fit.
        errors: tells the error of outputs; None makes one.
    """
    errors = errors or HeldOutError(original, calibration)
    finder = _Finder(original, unmerged, merged, scope)
    places = list(finder.places(calibration))
    # Each gets a bias, and a module of its own.
    start = {place.value: weights(as_conv(place.call.operator)) for place in places}
    working = Refit(start).run(merged).graph_module
    del start
    named = by_value(working)
    places = [
        replace(place, call=call)
        for place in places
        if isinstance(call := fittable(working, named[place.value]), AffineCall)
    ]
    to_sums = _to_sums(original, working, places)
    sweep = _Sweep(original, working, calibration, tether)
    best, kept, least, unexplained = error, dict[str, Tensor](), inf, dict[str, float]()
    for number in range((sweeps or _MOST_SWEEPS) if places else 0):
        fitted = sweep.run(to_sums if number else places, f"refitting, sweep {number + 1}")
        found = errors(working)
        least, enough = min(least, found), found > (1 - _GAIN) * best
        if found < best:
            best, kept, unexplained = found, fitted, dict(sweep.unexplained)
        if enough and number:
            break
    refusals = list(finder.refusals)
    if places and not kept:
        reason = (
            "the weights stay, as fitting raises the squared error of the output on held-out "
            f"batches from {error:.3g} to {least:.3g}; more calibration data may help"
        )
        refusals.append(RefusedRewrite("the whole graph", reason, Refit.name))
    result = Refit(kept).run(merged).graph_module
    return Refitted(result, kept, best, error, unexplained, tuple(refusals))


class _Finder:
    """Which operators are to be fitted: those whose values the removals changed."""

    def __init__(
        self, original: GraphModule, unmerged: GraphModule, merged: GraphModule, scope: str
    ) -> None:
        self.refusals: list[RefusedRewrite] = []
        self._graphs = (original, unmerged, merged)
        self._scope = scope
        self._named = by_value(original)
        kept = {site.name for site in find_sites(unmerged)}
        self._removed = {site.node for site in find_sites(original) if site.name not in kept}

    def places(self, calibration: Calibration) -> Iterator[_Place]:
        """The operators, in order of execution; one batch tells what changed."""
        _, unmerged, merged = self._graphs
        plain_nodes = by_value(unmerged)
        found = {
            node: call
            for value, node in by_value(merged).items()
            if value in self._named and (call := fittable(merged, node)) is not None
        }
        nodes = [
            (self._named[node.meta[VALUE]], plain_nodes[node.meta[VALUE]], node)
            for node in merged.graph.nodes
            if node in found
        ]
        if not nodes:
            return
        batch = calibration.first()
        runs = [
            Run(graph, arguments(graph, calibration.forward, copied(batch)), keep)
            for graph, keep in zip(self._graphs, zip(*nodes, strict=True), strict=True)
        ]

        def changed() -> Iterator[list[int]]:
            """The shapes of the values that removals changed; none for those that are to stay."""
            for place in nodes:
                values = (run.take(node) for run, node in zip(runs, place, strict=True))
                expected, plain, seen = values
                stays = _apart(plain, seen) > _SAME or _apart(expected, plain) <= _UNCHANGED
                yield [] if stays else list(expected.shape)

        shapes = calibration.ranks.first("what removals changed", lambda: list(changed()))
        for place, shape in zip(nodes, shapes, strict=True):
            call, value = found[place[2]], place[2].meta[VALUE]
            if not shape:
                continue
            if isinstance(call, Refusal):
                self.refusals.append(RefusedRewrite(value, call.reason, Refit.name))
            elif self._scope == "downstream" or self._spans_removal(place[0], call):
                *samples, _ = shape[: len(shape) - call.operator.rank]
                positions = prod(shape[len(shape) - call.operator.rank :])
                yield _Place(value, call, place[0], prod(samples), positions)

    def _spans_removal(self, node: Node, call: AffineCall) -> bool:
        """Whether a rectifier was removed between the operator's input and its value."""
        return crosses(node, call.input.meta.get(VALUE), self._removed)


class _Spread:
    """The variance of values that come in parts, [N, C, L]: of each channel, then their mean."""

    def __init__(self) -> None:
        self._rows, self._sums, self._squares = 0, Tensor(), Tensor()

    def add(self, values: Tensor) -> None:
        values = values.double().transpose(0, 1).flatten(1)
        sums, squares = values.sum(1), values.square().sum(1)
        self._sums = self._sums + sums if self._rows else sums
        self._squares = self._squares + squares if self._rows else squares
        self._rows += values.shape[1]

    def over(self, ranks: Ranks) -> None:
        """Take in the values of all ranks."""
        own = {"sums": self._sums, "squares": self._squares, "rows": torch.tensor(self._rows)}
        found = ranks.added("the variance", own if self._rows else {})
        self._sums, self._squares = found["sums"], found["squares"]
        self._rows = int(found["rows"])

    @property
    def variance(self) -> float:
        means = self._sums / self._rows
        return float((self._squares / self._rows - means.square()).clamp(min=0).mean())


class _Sweep:
    """Ways through the operators, front to back."""

    def __init__(
        self,
        original: GraphModule,
        working: GraphModule,
        calibration: Calibration,
        tether: Tether,
    ) -> None:
        self._tether = tether
        self._graphs = (original, working)
        self._calibration = replace(calibration, progress=False)
        self._progress = calibration.progress
        self._batches = calibration.measured  # by all ranks
        self._own, self._read = set[int](), 0  # places of this one, known so far

    def run(self, places: Sequence[_Place], description: str) -> dict[str, Tensor]:
        """Fit every operator once; returns the weights."""
        self._places = places
        self._waiting: dict[int, tuple[Run, Run]] = {}
        self.unexplained: dict[str, float] = {}
        fitted = {}
        for number, place in enumerate(
            track(places, description, total=len(places), progress=self._progress)
        ):
            operator = place.call.operator
            fit, variance = self._fit(number, as_conv(in_double(_current(self._graphs[1], place))))
            self.unexplained[place.value] = fit.after / variance if variance else 0.0
            matrices = weights(fit.operator)
            module = to_module(refitted(operator, matrices), place.call.like)
            target = str(place.call.node.target)
            self._graphs[1].get_submodule(target).load_state_dict(module.state_dict())
            assert place.call.like is not None  # as it has weights
            fitted[place.value] = matrices.to(place.call.like.dtype)
        self._waiting.clear()
        return fitted

    def _fit(self, number: int, operator: Conv) -> tuple[Fit, float]:
        """The fit of an operator, and the variance of what it was fitted to."""
        place, spread = self._places[number], _Spread()
        # Batches are taken to be like the first one.
        available = place.samples * place.positions * self._batches
        wanted = rows_for(operator, available)
        self._taken = self._enough(wanted, place.samples, place.positions)
        rows = wanted // self._taken + 1
        assert place.call.like is not None  # as it has weights
        products = torch.promote_types(place.call.like.dtype, torch.float32)
        device = operator.weight.device
        equations = Equations(operator, available, device, self._tether, products)
        for batch, (original, reduced) in self._runs(number):
            reduced.until(place.call.node)
            x = _samples(reduced.env[place.call.input], operator.rank)
            target = original.take(place.original)
            if place.other is not None:
                target = target - reduced.env[place.other]
            y = _samples(target, operator.rank)
            positions = y.shape[2:].numel()
            held_out = self._held_out(batch, len(x))
            chosen, places = _pick(len(x), positions, rows, batch)
            places = places.to(x.device)
            equations.add(x[chosen], y[chosen], places, held_out[chosen])
            spread.add(y[chosen].flatten(2)[:, :, places] if operator.rank else y[chosen])
        equations.over(self._calibration.ranks)
        spread.over(self._calibration.ranks)
        return self._solved(equations), spread.variance

    def _solved(self, equations: Equations) -> Fit:
        """The fit, which rank 0 makes for all."""

        def solve() -> dict[str, Tensor]:
            fit = equations.solve()
            figures = torch.tensor([fit.before, fit.after, fit.strength], dtype=torch.float64)
            return {"weights": weights(fit.operator), "figures": figures}

        found = self._calibration.ranks.first_tensors("a fit", solve)
        operator = with_weights(equations.operator, found["weights"].to(equations.device))
        return Fit(operator, *found["figures"].tolist())

    def _enough(self, rows: int, samples: int, positions: int) -> int:
        """How many of the batches give so many rows, of images that are many and not much alike.

        All, where ranks have parts of their own: the first ones would be those of one rank.
        """
        if self._calibration.ranks.size > 1 and not self._calibration.loader.dealt:
            return self._batches
        images = max(_IMAGES, -(-rows // max(1, positions // _SPARSE)))
        return min(self._batches, max(_HELD_OUT_EVERY, -(-images // samples)))

    def _held_out(self, batch: int, samples: int) -> Tensor:
        """Which samples choose the strength: those of whole batches, where there are enough."""
        if self._batches >= _HELD_OUT_EVERY:
            return torch.full((samples,), batch % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1)
        seen = batch * samples
        return torch.arange(seen, seen + samples) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1

    def _runs(self, number: int) -> Iterator[tuple[int, tuple[Run, Run]]]:
        """Of each batch of this rank that is taken the runs, by its place among all.

        They wait in the order of the batches, so that it is the first ones that do.
        """
        for place, runs in self._waiting.items():
            if place < self._taken:
                yield place, runs
        self._let_go()
        own = {place for place in self._own if place < self._taken}
        if self._taken <= self._read and own <= self._waiting.keys():
            return
        for at, batch in self._calibration.batches(""):
            if (place := self._calibration.place(at)) >= self._taken:
                break
            self._own.add(place)
            if place in self._waiting:
                continue
            keep = {each.original for each in self._places[number:]}
            runs = self._begin(batch, keep)
            yield place, runs
            self._waiting[place] = runs
            self._let_go()
        self._read = max(self._read, self._taken)

    def _begin(self, batch: Any, keep: set[Node]) -> tuple[Run, Run]:
        original, reduced = self._graphs
        forward = self._calibration.forward
        return (
            Run(original, arguments(original, forward, copied(batch)), keep),
            Run(reduced, arguments(reduced, forward, copied(batch))),
        )

    def _let_go(self) -> None:
        """Drop runs until those that wait fit in the cache."""
        while sum(run.bytes() for pair in self._waiting.values() for run in pair) > CACHE:
            self._waiting.popitem()


def _to_sums(original: GraphModule, working: GraphModule, places: Sequence[_Place]) -> list[_Place]:
    """The places, those before a sum fitted to it.

    The sum alone reads the value, and what it adds to it is known by then.
    """
    named, found = by_value(original), list[_Place]()
    order = {node: number for number, node in enumerate(working.graph.nodes)}
    for place in places:
        node = place.call.node
        reader = next(iter(node.users)) if len(node.users) == 1 else node
        target, operands = named.get(reader.meta.get(VALUE, "")), sum_operands(reader)
        if target is not None and operands is not None:
            other = operands[1] if operands[0] is node else operands[0]
            alike = SHAPE in node.meta and other.meta.get(SHAPE) == node.meta[SHAPE]
            if alike and order[other] < order[node]:
                place = replace(place, original=target, other=other)
        found.append(place)
    return found


def _current(working: GraphModule, place: _Place) -> Operator:
    call = fittable(working, place.call.node)
    assert isinstance(call, AffineCall)  # as it was one before its weights changed
    return call.operator


def _samples(value: Tensor, rank: int) -> Tensor:
    """The value as [N, C, *spatial]."""
    return value.reshape(-1, *value.shape[value.dim() - rank - 1 :])


def _pick(samples: int, positions: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which samples and which positions of each make up about so many rows."""
    generator = torch.Generator().manual_seed(seed)
    each = min(positions, -(-rows // samples))
    chosen = torch.randperm(samples, generator=generator)[: -(-rows // each)]
    return chosen.sort().values, torch.randperm(positions, generator=generator)[:each].sort().values


def _apart(a: Any, b: Any) -> float:
    """How far two values are apart, relative to the largest; infinite where they do not compare."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return inf
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else inf
    return float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny))
