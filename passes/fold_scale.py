"""Fold a scale-shift into the affine operator that structure separates it from.

    S(M(f(x)))  =  M(S'(f(x)))  =  M(compose(S', f)(x)),      g(M(S(x)))  =  compose(S', g)(M(x))

    Before: y = linear(x); z = permute(y); w = z * gamma     After: w = permute(folded(x))
    Before: y = bn(x); z = flatten(y); w = linear(z)         After: z = flatten(x); w = folded(z)

M moves or averages values and keeps the channels apart; S' maps them as S does, where they lie on
the other side. Restrictions: those of `graph.structure` and `operators.compose`; each value between
the two operators has one reader; upwards, each channel of f must become one of S. Cost: that of the
scale-shift is saved; a merged operator that costs more is refused. Source: a map of each channel
commutes with means over positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of, read_affine
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label, operation
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.graph.structure import Carried, carry, is_structural
from fxreduce.operators.affine import Operator, Refusal, ScaleShift, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import dearer, rewrite_matches
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard, overflow

_SLICES = {"getitem", "select", "slice", "narrow"}


@dataclass(frozen=True)
class Match:
    """A scale-shift, the operator that takes it up, and the two in the order in which they act.

    The one of `pair` that is the scale-shift acts on the channels where the operator has them.
    """

    scale: AffineCall
    into: AffineCall
    pair: tuple[Operator, Operator]


@dataclass(frozen=True)
class FoldScale:
    """Fold a scale-shift into the affine operator that structure separates it from."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "fold_scale"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        return rewrite_matches(recorder, match, self._decide, _replace)

    def _decide(self, found: Match) -> Match | Refusal:
        """The match, or why the two stay apart: not exact, or not cheaper."""
        merged = compose(*(on_meta(operator) for operator in found.pair))
        if isinstance(merged, Refusal):
            return merged
        setting, like = setting_of(found.into), like_of((found.scale, found.into))
        apart = [
            (on_meta(found.into.operator), setting),
            (on_meta(found.scale.operator), setting_of(found.scale)),
        ]
        return (
            dearer(self.cost, [(merged, setting)], apart)
            or overflow(lambda: compose(*found.pair), like)
            or found
        )


def match(recorder: Recorder, node: Node) -> Match | Refusal | None:
    """The scale-shift that the node calls, and what takes it up: above it, or else below."""
    graph_module = recorder.graph_module
    scale = read_affine(graph_module, node)
    if not isinstance(scale, AffineCall) or not isinstance(scale.operator, ScaleShift):
        return None
    above, below = _above(graph_module, scale), _below(graph_module, scale)
    found = above if isinstance(above, Match) or below is None else below
    if not isinstance(found, Match):
        return found
    return _hazard(recorder.aliases, found) or found


def _above(graph_module: GraphModule, scale: AffineCall) -> Match | Refusal | None:
    """The operator that writes what structure brings to the scale-shift."""
    path: list[Node] = []
    value = scale.input
    while len(value.users) == 1 and is_structural(graph_module, value):
        path.insert(0, value)
        value = value.all_input_nodes[0]
    into = read_affine(graph_module, value)
    if not path or not isinstance(into, AffineCall) or len(value.users) > 1:
        return None
    carried = carry(graph_module, path, Carried.of(into.operator))
    if isinstance(carried, Refusal):
        return carried
    affine = scale.operator
    assert isinstance(affine, ScaleShift)  # as `match` has seen
    order = carried.channels.argsort()
    if carried.rank != affine.rank:
        return Refusal(f"{label(path[-1])} has brought the channels to another axis than it scales")
    if not torch.equal(carried.channels[order], torch.arange(into.operator.out_channels)):
        return Refusal(
            f"{label(path[-1])} reads a channel of {label(value)} more than once, or not"
        )
    if _lays_out_anew(path, scale.node) and _views_after(graph_module, scale.node):
        return Refusal("a view behind it needs values that lie in memory without gaps")
    moved = Carried(into.operator.rank, order).place(affine)
    return Match(scale, into, (into.operator, moved))


def _below(graph_module: GraphModule, scale: AffineCall) -> Match | Refusal | None:
    """The operator that structure brings the scale-shift's values to."""
    path: list[Node] = []
    value = scale.node
    while len(value.users) == 1 and is_structural(graph_module, next(iter(value.users))):
        value = next(iter(value.users))
        path.append(value)
    reader = next(iter(value.users), None)
    into = None if reader is None else read_affine(graph_module, reader)
    if not path or not isinstance(into, AffineCall):
        return None
    if len(value.users) > 1:
        names = ", ".join(sorted(label(user) for user in value.users))
        return Refusal(f"{label(value)} has {len(value.users)} readers: {names}")
    affine = scale.operator
    assert isinstance(affine, ScaleShift)  # as `match` has seen
    carried = carry(graph_module, path, Carried.of(affine))
    if isinstance(carried, Refusal):
        return carried
    if view := next((node for node in path if operation(node) == "view"), None):
        return Refusal(f"{label(view)} needs the memory that the scale-shift lays out")
    return Match(scale, into, (carried.place(affine), into.operator))


def _lays_out_anew(path: list[Node], scale: Node) -> bool:
    """Whether the scale-shift's values lie in memory otherwise than those that it is given."""
    elementwise = operation(scale) is not None and operation(scale) != "batch_norm"
    return not elementwise or any(operation(node) in _SLICES for node in path)


def _views_after(graph_module: GraphModule, node: Node) -> bool:
    nodes = list(graph_module.graph.nodes)
    return any(operation(later) == "view" for later in nodes[nodes.index(node) :])


def _hazard(aliases: Aliases, found: Match) -> Refusal | None:
    """Why folding would change what other nodes read, or freeze what changes, if so."""
    if like_of((found.scale, found.into)) is None:
        return Refusal(NUMBERS_ALONE)
    if reason := hazard(aliases, found.scale) or hazard(aliases, found.into):
        return reason
    given = found.scale.input
    if aliases.overwritten_between(given, found.scale.node, found.into.node):
        return Refusal(f"{label(given)} is overwritten in place before {label(found.into.node)}")
    return None


def _replace(recorder: Recorder, found: Match) -> None:
    merged = compose(*found.pair)
    assert not isinstance(merged, Refusal)  # its geometry has been composed
    scale, into = found.scale.node, found.into.node
    why = f"one operator instead of {label(scale)} and {label(into)}"
    module = to_module(merged, like_of((found.scale, found.into)))
    recorder.merge([into], found.into.input, module, why, [scale])
    recorder.replace(scale, found.scale.input, why)
