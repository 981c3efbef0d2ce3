"""Split a pointwise operator over a concatenation, where its parts merge with what stands before.

    h(cat([f(x), g(z), v]))  =  (h_1 f)(x) + (h_2 g)(z) + h_3 v        h_i: the columns of h

    Before: y = cat([conv_a(x), conv_b(z), v]); w = conv1x1(y)
    After:  w = merged_a(x) + merged_b(z) + conv1x1_rest(v)

Exact, as one tap without padding reads each channel alone; Linear is such an operator too.
Restrictions: no groups; only operands are split off whose affine producer has no other reader and
merges with its columns. Cost: the copy of the operands and their producers' wider outputs are
saved, additions are new; made only where the sum falls. What is split off is chosen by itself, and
all together if that is cheaper still.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.concatenation import Concatenation, affine_behind
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label, shape_of
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Conv, Operator, Refusal, identity, on_meta
from fxreduce.operators.columns import Span, columns
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import Candidate, CostModel, FlopsCost, costs
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import rewrite_matches
from fxreduce.passes.reasons import hazard, not_cheaper, overflow


@dataclass(frozen=True)
class Match:
    """An operator over a concatenation, and the producers, by place, of what can be split off."""

    call: AffineCall
    operator: Conv
    whole: Concatenation
    spans: tuple[Span, ...]
    producers: dict[int, AffineCall]

    def rest(self, chosen: Sequence[int]) -> list[int]:
        """The places of the operands that are not split off."""
        return [place for place in range(len(self.spans)) if place not in chosen]


@dataclass(frozen=True)
class Split:
    """A match, and the places of the operands that are split off."""

    found: Match
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class SplitCat:
    """Split a pointwise operator over a concatenation where its parts merge with its operands."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "split_cat"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        return rewrite_matches(recorder, match, self._decide, _split)

    def _decide(self, found: Match) -> Split | Refusal:
        """The operands to split off, those that pay alone or all together, or why none is."""
        every = list(found.producers)
        each = self._rated(found, [[place] for place in every])
        alone = [place for place, (split, apart) in zip(every, each, strict=True) if split < apart]
        choices = [places for places in (alone, every) if places]
        rated = zip(self._rated(found, choices), choices, strict=True)
        (split, apart), best = min(rated, key=lambda each: each[0][0] - each[0][1])
        if split < apart:
            return Split(found, tuple(best))
        return Refusal(not_cheaper(split, apart, self.cost.name))

    def _rated(self, found: Match, choices: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
        """What each choice costs split off, and as it is, all rated in one comparison."""
        sides = [side for chosen in choices for side in _candidates(found, chosen)]
        rates = iter(costs(self.cost, [each for side in sides for each in side]))
        totals = [sum(islice(rates, len(side))) for side in sides]
        return list(zip(totals[::2], totals[1::2], strict=True))


def _candidates(found: Match, chosen: Sequence[int]) -> tuple[list[Candidate], list[Candidate]]:
    """The calls with these operands split off, and those as it is; what stays is left out."""
    whole = on_meta(found.operator)
    setting, rest = setting_of(found.call), found.rest(chosen)
    apart = [(whole, setting), *_copy(found, range(len(found.spans)))]
    split = _copy(found, rest)
    if rest:
        kept = columns(whole, [found.spans[place] for place in rest])
        split.append((kept, setting.resized(found.whole.axis, kept.in_channels)))
    for place in chosen:
        producer = found.producers[place]
        before, f = setting_of(producer), on_meta(producer.operator)
        merged = compose(f, columns(whole, [found.spans[place]]))
        assert not isinstance(merged, Refusal)  # it was composed when it was matched
        apart.append((f, before))
        split.append((merged, before))
    addition = (identity(whole.out_channels, whole.rank), setting.after(whole))
    return split + [addition] * (len(chosen) - (not rest)), apart


def _copy(found: Match, places: Sequence[int]) -> list[Candidate]:
    """What lays operands behind one another, where there are several."""
    channels = sum(found.spans[place][1] for place in places)
    setting = setting_of(found.call).resized(found.whole.axis, channels)
    copied = identity(channels, found.operator.rank)
    return [(copied, setting)] if len(places) > 1 else []


def match(recorder: Recorder, node: Node) -> Match | Refusal | None:
    """The pointwise operator over a concatenation that the node calls; None where it calls none."""
    graph_module = recorder.graph_module
    behind = affine_behind(graph_module, node)
    if behind is None:
        return None
    call, whole = behind
    joined = call.operator
    if not isinstance(joined, Conv) or not joined.is_pointwise:
        return None
    producers = {
        place: producer
        for place, operand in enumerate(whole.operands)
        if (producer := whole.producer(graph_module, operand)) is not None
    }
    if not producers:
        return None
    if len(whole.node.users) > 1:
        return Refusal(f"{label(whole.node)} has {len(whole.node.users)} readers")
    if joined.groups > 1:
        return Refusal(f"it has {joined.groups} groups, which operands may lie across")
    spans = whole.spans(graph_module, joined.in_channels)
    aliases = recorder.aliases
    if reason := hazard(aliases, call):
        return reason
    if isinstance(spans, Refusal):
        return spans
    found = Match(call, joined, whole, spans, {})
    reasons = [_stays(aliases, found, place, each) for place, each in producers.items()]
    kept = [reason for reason in reasons if reason is not None]
    if len(kept) == len(producers):
        return kept[0]
    can = zip(producers.items(), reasons, strict=True)
    return replace(found, producers=dict(item for item, reason in can if reason is None))


def _stays(aliases: Aliases, found: Match, place: int, producer: AffineCall) -> Refusal | None:
    """Why an operand cannot be split off, if it cannot."""
    if reason := found.whole.other_readers(producer.node) or hazard(aliases, producer):
        return reason
    mine, its = found.operator.weight, like_of((producer,))
    if its is not None and (its.dtype, its.device) != (mine.dtype, mine.device):
        return Refusal(f"{label(producer.node)} works in {its.dtype} on {its.device}")
    part = columns(on_meta(found.operator), [found.spans[place]])
    merged = compose(on_meta(producer.operator), part)
    if isinstance(merged, Refusal):
        return merged
    return overflow(lambda: _merged(found, place, producer, found.operator.bias), mine)


def _merged(
    found: Match, place: int, producer: AffineCall, bias: Tensor | None
) -> Operator | Refusal:
    """The operand's own operator with its columns behind it, and a bias."""
    part = columns(found.operator, [found.spans[place]])
    return compose(producer.operator, replace(part, bias=bias))


def _split(recorder: Recorder, decided: Split) -> None:
    found, chosen = decided.found, decided.chosen
    node, whole = found.call.node, found.whole
    shape, rest = shape_of(node), found.rest(chosen)
    names = ", ".join(label(whole.operands[place]) for place in chosen)
    why = f"{label(node)} is split by its input channels and merged with {names}"
    terms: dict[Node, list[Node]] = {}
    for place in chosen:
        producer = found.producers[place]
        merged = _merged(found, place, producer, None if terms else found.operator.bias)
        assert not isinstance(merged, Refusal)  # its geometry has been composed
        module = to_module(merged, like_of((found.call, producer)))
        nodes, given = [producer.node, node], producer.input
        term = recorder.stand_in(nodes, given, module, producer.node, shape, why)
        terms.setdefault(given, []).append(term)
    # What reads one input is added first: the sum may be merged.
    sums = [_sum(recorder, node, each, why) for each in terms.values()]
    if rest:
        kept = columns(found.operator, [found.spans[place] for place in rest])
        module = to_module(kept, found.call.like)
        given = _rest(recorder, found, rest, kept, why)
        # Where the concatenation stood: its operands may be overwritten behind it.
        sums.append(recorder.stand_in([node], given, module, whole.node, shape, why))
    recorder.replace(node, _sum(recorder, node, sums, why), why)
    for gone in (whole.node, *(whole.operands[place] for place in reversed(chosen))):
        recorder.erase(gone, why)


def _rest(recorder: Recorder, found: Match, rest: Sequence[int], kept: Operator, why: str) -> Node:
    """The operands that are not split off, behind one another."""
    whole = found.whole
    operands = [whole.operands[place] for place in rest]
    if len(operands) == 1:
        return operands[0]
    shape = whole.shape_with(kept.in_channels)
    return recorder.create(
        whole.node.op, whole.node.target, whole.of(operands), {}, whole.node, shape, why
    )


def _sum(recorder: Recorder, before: Node, terms: Sequence[Node], why: str) -> Node:
    total, *others = terms
    for term in others:
        args, shape = (total, term), shape_of(before)
        total = recorder.create("call_function", operator.add, args, {}, before, shape, why)
    return total
