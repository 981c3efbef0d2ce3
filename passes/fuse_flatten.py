"""Merge a pointwise operator on maps of one position with the Linear behind their flattening.

    g(flatten(f(pool(x))))  =  compose(f, g)(flatten(pool(x)))        pool: over whole axes

    Before: y = pool(x); z = conv1x1(y); w = linear(flatten(z))
    After:  y = pool(x); w = merged(flatten(y))

Exact: on maps of one position a pointwise operator is a Linear. That they have one position must
hold for inputs of every size, and is therefore read from the pooling, not from an example.
Restrictions: the operator and the flattening have one reader each. Cost: one operator instead of
two, where the merged one is cheaper; groups become zeros in the Linear's weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of, read_affine
from fxreduce.graph.layout import flattens
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import argument, has_hooks, label, module_of, shape_of
from fxreduce.graph.pooling import MeanPooling, read_mean_pooling
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.rectifiers import read_rectifier
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Operator, Refusal, ScaleShift, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.operators.pooling import on_rank
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import dearer, rewrite_matches
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard, overflow


@dataclass(frozen=True)
class Match:
    """A pointwise operator on maps of one position, their flattening, and what follows."""

    first: AffineCall
    flatten: Node
    second: AffineCall

    def merge(self) -> Operator | Refusal:
        """The one operator behind the flattening."""
        return compose(on_rank(self.first.operator, 0), self.second.operator)


@dataclass(frozen=True)
class FuseFlatten:
    """Merge a pointwise operator on maps of one position with what follows their flattening."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "fuse_flatten"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        return rewrite_matches(recorder, match, self._decide, _replace)

    def _decide(self, found: Match) -> Match | Refusal:
        """The match, or why both operators stay apart: not exact, or not cheaper."""
        f, g = on_meta(found.first.operator), on_meta(found.second.operator)
        merged = compose(on_rank(f, 0), g)
        if isinstance(merged, Refusal):
            return merged
        before, behind = setting_of(found.first), setting_of(found.second)
        flat = behind.resized(-1, f.in_channels)
        return (
            dearer(self.cost, [(merged, flat)], [(f, before), (g, behind)])
            or overflow(found.merge, like_of((found.second, found.first)))
            or found
        )


def match(recorder: Recorder, node: Node) -> Match | Refusal | None:
    """The operators around a flattening, of which the node calls the second; None without them."""
    graph_module = recorder.graph_module
    if not any(flattens(graph_module, given) for given in node.all_input_nodes):
        return None
    second = read_affine(graph_module, node)
    if not isinstance(second, AffineCall) or second.operator.rank != 0:
        return None
    flatten = second.input
    given = argument(flatten, 0, "input")
    if not isinstance(given, Node) or not flattens(graph_module, flatten):
        return None
    first = read_affine(graph_module, given)
    if not isinstance(first, AffineCall) or not _maps_positions(first.operator):
        return None
    if first.operator.rank == 0 or not _is_one_position(graph_module, given):
        return None
    for each in (first.node, flatten):
        if len(each.users) > 1:
            return Refusal(f"{label(each)} has {len(each.users)} readers")
    module = module_of(graph_module, flatten)
    if module is not None and has_hooks(module):
        return Refusal(f"{label(flatten)} has forward hooks, which would see other values")
    if like_of((first, second)) is None:
        return Refusal(NUMBERS_ALONE)
    aliases = recorder.aliases
    found = Match(first, flatten, second)
    return hazard(aliases, first) or hazard(aliases, second) or found


def _is_one_position(graph_module: GraphModule, node: Node) -> bool:
    """Whether the value has one position, whatever the size of the model's input."""
    while not isinstance(pooling := read_mean_pooling(graph_module, node), MeanPooling):
        call, rectifier = read_affine(graph_module, node), read_rectifier(graph_module, node)
        if isinstance(call, AffineCall) and _maps_positions(call.operator):
            node = call.input
        elif rectifier is not None:
            node = rectifier.input
        else:
            return False
    return pooling.is_global and pooling.keeps_axes


def _maps_positions(operator: Operator) -> bool:
    return isinstance(operator, ScaleShift) or operator.is_pointwise


def _replace(recorder: Recorder, found: Match) -> None:
    first, flatten, second = found.first, found.flatten, found.second
    why = f"one operator instead of {label(first.node)} and {label(second.node)}"
    shape = shape_of(flatten)
    if shape is not None:
        shape = (*shape[:-1], first.operator.in_channels)
    flat = recorder.again(flatten, first.node, first.input, first.node, shape, why)
    merged = found.merge()
    assert not isinstance(merged, Refusal)  # its geometry has been composed
    module = to_module(merged, like_of((second, first)))
    node = second.node
    # At the path of the second one, which was a Linear too.
    by = recorder.stand_in([node, first.node], flat, module, node, shape_of(node), why)
    recorder.replace(node, by, why)
    recorder.erase(flatten, why)
    recorder.erase(first.node, why)
