"""Stack affine operators over one input whose outputs a concatenation lays behind one another.

    cat([f(x), g(x)])  =  stack(f, g)(x)

    Before: y = conv_a(x); z = conv_b(x); w = cat([y, z, v])        After: w = cat([stacked(x), v])

Restrictions: those of `operators.add` (same stride, same shape); the siblings are neighbours in the
concatenation along their channel axis and have no other reader. Cost: the input is read once; a
smaller kernel is padded with zeros, which mostly does not pay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.concatenation import Concatenation, read_concatenation
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label, shape_of
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Operator, Refusal, identity, on_meta
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.operators.stack import stack
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import dearer
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard


@dataclass(frozen=True)
class Part:
    """Neighbouring operands of a concatenation and the calls, over one input, that compute them.

    Where there is no such call, it is a single operand. `stacked` is the geometry of all calls in
    one, where there are several.
    """

    operands: tuple[Node, ...]
    calls: tuple[AffineCall, ...]
    stacked: Operator | None = None

    @property
    def operator(self) -> Operator:
        """The geometry of the one operator that computes the operands."""
        return self.stacked or on_meta(self.calls[0].operator)


@dataclass(frozen=True)
class StackSiblings:
    """Stack affine operators over one input whose outputs are concatenated."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "stack_siblings"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            concatenation = read_concatenation(recorder.graph_module, node)
            if concatenation is None:
                continue
            parts = self._parts(recorder, concatenation)
            if len(parts) < len(concatenation.operands):
                _replace(recorder, concatenation, parts)
        return PassResult.of(recorder)

    def _parts(self, recorder: Recorder, whole: Concatenation) -> list[Part]:
        """The operands, those together that are to become one operator."""
        parts: list[Part] = []
        for operand in whole.operands:
            call = whole.producer(recorder.graph_module, operand)
            part = Part((operand,), () if call is None else (call,))
            found = match(recorder.aliases, whole, parts[-1], part) if parts else None
            if isinstance(found, Part):
                found = self._refusal(whole, parts[-1], part, found) or found
            if isinstance(found, Part):
                parts[-1] = found
                continue
            if found is not None:
                where = f"{label(parts[-1].operands[-1])} | {label(operand)}"
                recorder.refuse(where, found.reason)
            parts.append(part)
        return parts

    def _refusal(self, whole: Concatenation, f: Part, g: Part, both: Part) -> Refusal | None:
        """Why two parts stay apart that can be stacked, if they do: it costs more."""
        setting = setting_of(both.calls[0])
        apart = [(f.operator, setting), (g.operator, setting)]
        if both.operands == whole.operands:  # nothing is left to be copied
            copied = identity(both.operator.out_channels, both.operator.rank)
            apart.append((copied, setting.after(both.operator)))
        return dearer(self.cost, [(both.operator, setting)], apart)


def match(aliases: Aliases, whole: Concatenation, f: Part, g: Part) -> Part | Refusal | None:
    """Both parts as one; None where they are no operators over one input."""
    calls = (*f.calls, *g.calls)
    if not (f.calls and g.calls) or f.calls[0].input is not g.calls[0].input:
        return None
    if reason := _hazard(aliases, whole, calls):
        return reason
    stacked = stack(f.operator, g.operator)
    if isinstance(stacked, Refusal):
        return stacked
    return Part((*f.operands, *g.operands), calls, stacked)


def _hazard(
    aliases: Aliases, whole: Concatenation, calls: tuple[AffineCall, ...]
) -> Refusal | None:
    """Why stacking would change what other nodes read, if it would."""
    if like_of(calls) is None:
        return Refusal(NUMBERS_ALONE)
    for call in calls:
        if reason := whole.other_readers(call.node) or hazard(aliases, call):
            return reason
    given = calls[0].input
    first = min((call.node for call in calls), key=aliases.place)
    if aliases.overwritten_between(given, first, whole.node):
        return Refusal(f"{label(given)} is overwritten in place between the siblings")
    return None


def _replace(recorder: Recorder, whole: Concatenation, parts: list[Part]) -> None:
    order = {node: place for place, node in enumerate(recorder.nodes)}
    operands: list[Node] = []
    erased: list[Node] = []
    for part in parts:
        if len(part.calls) < 2:
            operands += part.operands
            continue
        why = f"one operator instead of {', '.join(map(label, part.operands))}"
        nodes = sorted(part.operands, key=order.__getitem__)
        module = to_module(_fold(part.calls), like_of(part.calls))
        given, shape = part.calls[0].input, whole.shape_with(part.operator.out_channels)
        operands.append(recorder.stand_in(nodes, given, module, nodes[0], shape, why))
        erased += nodes
    (by, *others), node = operands, whole.node
    why = "what it laid behind one another is one operator's output"
    if others:
        why = "some of what it laid behind one another is one operator's output"
        args = whole.of(operands)
        by = recorder.create(node.op, node.target, args, {}, node, shape_of(node), why)
    recorder.replace(node, by, why)
    for gone in reversed(erased):
        recorder.erase(gone, why)


def _fold(calls: tuple[AffineCall, ...]) -> Operator:
    stacked, *rest = (call.operator for call in calls)
    for operator in rest:
        found = stack(stacked, operator)
        assert not isinstance(found, Refusal)  # its geometry has been stacked
        stacked = found
    return stacked
