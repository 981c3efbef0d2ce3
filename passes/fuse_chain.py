"""Merge affine operators that follow one another into the cheapest sequence.

    f then g  =  compose(f, g)

    Before: y = conv(x); z = bn(y); w = conv1x1(z)        After: w = merged(x)

A chain is cut where merging is not exact or does not pay; the cheapest cut is found by dynamic
programming over all its intervals, as merging only half of a chain can cost more than all of it
(1x1, depthwise, 1x1). Restrictions: those of `operators.compose`; each value inside the chain has
one reader (`fuse_shared` merges where there are several). Cost: never more than before, by the cost
model; one call instead of several, and nothing is written in between. Source: the composition rules
in `fxreduce/operators/compose.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of, read_affine
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Operator, Refusal, on_meta
from fxreduce.operators.compose import compose, compose_all
from fxreduce.operators.cost import CostModel, FlopsCost, chain_cost, costs
from fxreduce.operators.setting import Setting, settings_along
from fxreduce.passes.base import PassResult
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard, not_cheaper, overflow

Chain = tuple[AffineCall, ...]
# Operators that one step merges at most; no known block of a network has as many.
LONGEST_PART = 16


@dataclass(frozen=True)
class Cut:
    """A chain cut into parts, each to become one operator, and why it is cut where it is."""

    parts: tuple[Chain, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class FuseChain:
    """Merge affine operators that follow one another into the cheapest sequence."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "fuse_chain"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        # Last first: a chain's input may be the output of an earlier one, which is then replaced.
        for chain in reversed(list(find_chains(recorder))):
            cut = cheapest_cut(chain, self.cost)
            for before, after, reason in zip(cut.parts, cut.parts[1:], cut.reasons, strict=False):
                recorder.refuse(f"{label(before[-1].node)} → {label(after[0].node)}", reason)
            for part in reversed(cut.parts):
                if len(part) > 1:
                    _replace(recorder, part)
        return PassResult.of(recorder)


def find_chains(recorder: Recorder) -> Iterator[Chain]:
    """The maximal chains of affine calls in which each value has one reader."""
    graph_module = recorder.graph_module
    calls = _readable_calls(recorder)
    follows: dict[Node, AffineCall] = {}
    for call in calls.values():
        before = calls.get(call.input)
        if before is not None and len(before.node.users) == 1:
            follows[before.node] = call
    heads = calls.keys() - {call.node for call in follows.values()}
    for node in graph_module.graph.nodes:
        if node in heads and node in follows:
            chain = [calls[node]]
            while (following := follows.get(chain[-1].node)) is not None:
                chain.append(following)
            yield tuple(chain)


def _readable_calls(recorder: Recorder) -> dict[Node, AffineCall]:
    """The affine calls of the graph; reasons go to the record where one cannot be read."""
    graph_module, aliases, calls = recorder.graph_module, recorder.aliases, {}
    for node in recorder.nodes:
        call = read_affine(graph_module, node)
        if isinstance(call, Refusal):
            recorder.refuse(label(node), call.reason)
        elif call is not None:
            reason = hazard(aliases, call)
            if reason is None:
                calls[node] = call
            else:
                recorder.refuse(label(node), reason.reason)
    return calls


def cheapest_cut(chain: Chain, model: CostModel) -> Cut:
    """The parts of least cost; of equal ones the part that merges less.

    Numbers, poolings and pads alone stay apart: nothing tells how many channels, of which dtype,
    they will meet. So does what the dtype cannot hold as one. A part holds `LONGEST_PART` operators
    at most, so that the work grows with the length of the chain; parts that may be merged still
    further are met again in the next round.
    """
    operators = [on_meta(call.operator) for call in chain]
    settings = list(settings_along(operators, setting_of(chain[0])))
    size = len(chain)
    merges = {
        (start, start + length): merged
        for start in range(size)
        for length, merged in _prefixes(operators[start : start + LONGEST_PART])
        if length == 1 or like_of(chain[start : start + length]) is not None
    }
    rated = costs(model, [(merged, settings[start]) for (start, _), merged in merges.items()])
    paid = dict(zip(merges, rated, strict=True))
    while True:
        spans = _cheapest_spans(paid, size)
        # What a dtype cannot hold is seen only once it is merged: of few spans, and mostly of none.
        barred = [span for span in spans if _overflow(chain[slice(*span)]) is not None]
        if not barred:
            break
        paid = {span: cost for span, cost in paid.items() if span not in barred}
    parts = tuple(chain[a:b] for a, b in spans)
    reasons = (
        _reason_apart((chain[a:b], chain[b:c]), (merges[a, b], merges[b, c]), settings[a], model)
        for (a, b), (_, c) in pairwise(spans)
    )
    return Cut(parts, tuple(reasons))


def _cheapest_spans(paid: Mapping[tuple[int, int], float], size: int) -> list[tuple[int, int]]:
    """The spans of least cost that cover 0 to `size` without gaps."""
    best: list[tuple[float, int]] = [(inf, size)] * size + [(0.0, size)]
    for (start, end), cost in sorted(paid.items(), key=lambda each: (-each[0][0], each[0][1])):
        total = cost + best[end][0]
        if total < best[start][0]:
            best[start] = (total, end)
    bounds = [0]
    while bounds[-1] < size:
        bounds.append(best[bounds[-1]][1])
    return list(pairwise(bounds))


def _prefixes(operators: list[Operator]) -> Iterator[tuple[int, Operator]]:
    """How many operators, from the first on, merge into one, and that one."""
    merged = operators[0]
    yield 1, merged
    for size, operator in enumerate(operators[1:], 2):
        composed = compose(merged, operator)
        if isinstance(composed, Refusal):
            return
        merged = composed
        yield size, merged


def _reason_apart(
    parts: tuple[Chain, Chain],
    operators: tuple[Operator, Operator],
    setting: Setting,
    model: CostModel,
) -> str:
    """Why two neighbouring parts stay apart: not exact, or not cheaper, with both figures."""
    if like_of((*parts[0], *parts[1])) is None:
        return NUMBERS_ALONE
    merged = compose(*operators)
    if isinstance(merged, Refusal):
        return merged.reason
    if (refusal := _overflow((*parts[0], *parts[1]))) is not None:
        return refusal.reason
    together = chain_cost((merged,), setting, model)
    return not_cheaper(together, chain_cost(operators, setting, model), model.name)


def _overflow(part: Chain) -> Refusal | None:
    """Why the dtype of the part cannot hold it as one operator, if it cannot."""
    if len(part) == 1:
        return None
    return overflow(lambda: _merged(part), like_of(part))


def _merged(part: Chain) -> Operator:
    merged = compose_all([call.operator for call in part])
    assert not isinstance(merged, Refusal)  # the part was composed when it was chosen
    return merged


def _replace(recorder: Recorder, part: Chain) -> None:
    names = ", ".join(label(call.node) for call in part)
    recorder.merge(
        [call.node for call in part],
        part[0].input,
        to_module(_merged(part), like_of(part)),
        f"one operator instead of {names}",
    )
