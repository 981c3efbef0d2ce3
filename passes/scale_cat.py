"""Move a scale and shift behind a concatenation into the operators before it.

    s(cat([f(x), g(z)]))  =  cat([s_1 f (x), s_2 g (z)])        s_i: the channels of s

    Before: y = cat([conv_a(x), conv_b(z)]); w = bn(y)        After: w = cat([new_a(x), new_b(z)])

Exact: a scale-shift acts on each channel alone. Restrictions: every operand has an affine producer
that nothing else reads. Cost: the scale-shift's memory pass is saved, nothing is new.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.concatenation import Concatenation, affine_behind
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Operator, Refusal, ScaleShift, on_meta
from fxreduce.operators.columns import columns
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import dearer, rewrite_matches
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard, overflow


@dataclass(frozen=True)
class Match:
    """A scale-shift over a concatenation, and for each operand its producer with its share."""

    call: AffineCall
    whole: Concatenation
    pairs: tuple[tuple[AffineCall, ScaleShift], ...]


@dataclass(frozen=True)
class ScaleCat:
    """Move a scale and shift behind a concatenation into the operators before it."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "scale_cat"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        return rewrite_matches(recorder, match, self._decide, _replace)

    def _decide(self, found: Match) -> Match | Refusal:
        """The match, or why the scale-shift stays behind the concatenation: it is dearer before."""
        merged, apart = [], [(on_meta(found.call.operator), setting_of(found.call))]
        for producer, part in found.pairs:
            setting, f = setting_of(producer), on_meta(producer.operator)
            merged.append((_scaled(f, on_meta(part)), setting))
            apart.append((f, setting))
        if refusal := dearer(self.cost, merged, apart):
            return refusal
        wide = (
            overflow(partial(_scaled, producer.operator, part), producer.like)
            for producer, part in found.pairs
        )
        return next((reason for reason in wide if reason is not None), found)


def match(recorder: Recorder, node: Node) -> Match | Refusal | None:
    """The scale-shift over a concatenation that the node calls; None where it calls none."""
    graph_module = recorder.graph_module
    behind = affine_behind(graph_module, node)
    if behind is None:
        return None
    call, whole = behind
    scale = call.operator
    if not isinstance(scale, ScaleShift):
        return None
    producers: list[AffineCall] = []
    for operand in whole.operands:
        producer = whole.producer(graph_module, operand)
        if producer is None:
            return Refusal(f"no affine operator computes {label(operand)} of the concatenation")
        producers.append(producer)
    spans = whole.spans(graph_module, scale.in_channels)
    if isinstance(spans, Refusal):
        return spans
    parts = [columns(scale, [span]) for span in spans]
    pairs = tuple(zip(producers, parts, strict=True))
    return _hazard(recorder.aliases, call, whole, producers) or Match(call, whole, pairs)


def _hazard(
    aliases: Aliases, call: AffineCall, whole: Concatenation, producers: list[AffineCall]
) -> Refusal | None:
    """Why the scale-shift cannot move without changing what others read, if it cannot."""
    if len(whole.node.users) > 1:
        return Refusal(f"{label(whole.node)} has {len(whole.node.users)} readers")
    for each in (call, *producers):
        if reason := hazard(aliases, each):
            return reason
    for producer in producers:
        if reason := whole.other_readers(producer.node):
            return reason
        if like_of((producer,)) is None:
            return Refusal(NUMBERS_ALONE)
    return None


def _scaled(f: Operator, part: Operator) -> Operator:
    merged = compose(f, part)
    assert not isinstance(merged, Refusal)  # nothing is easier to merge than a scale-shift
    return merged


def _replace(recorder: Recorder, found: Match) -> None:
    why = f"{label(found.call.node)} acts on the operands' operators"
    for producer, part in found.pairs:
        module = to_module(_scaled(producer.operator, part), producer.like)
        recorder.merge([producer.node], producer.input, module, why, [found.call.node])
    recorder.replace(found.call.node, found.whole.node, why)
