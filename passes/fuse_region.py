"""Merge what of a region of affine operators and sums is cheapest as one operator.

    cover(a ; b ; ...)  =  min over cuts,      cover(a + b)  =  min(one operator, all that is there)

    Before: y = narrow(x); z = widen(y); w = z + conv(x)        After: w = merged(x)

A region has one input and one output and is series-parallel. The cheapest of its exact covers is
found by dynamic programming over its tree, before the other passes take what pays step by step: a
branch through few channels is dearer as one operator until the branch beside it takes it up.
Restrictions: those of `operators.compose` and `operators.add`; each value inside is read inside
alone; a region without a sum is left to `fuse_chain`. Cost: never more than before, by the cost
model. Source: Valdes, Tarjan and Lawler 1982 for the regions (`graph.regions`), the covers in
`operators.regions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, cast

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of, read_affine
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.regions import Edge, find_regions
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Operator, Refusal
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.operators.regions import Leaf, Region, additions, cheapest_cover, leaves, merge
from fxreduce.passes.base import PassResult
from fxreduce.passes.reasons import hazard, overflow


@dataclass(frozen=True)
class FuseRegion:
    """Merge what of a region of affine operators and sums is cheapest as one operator."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "fuse_region"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        read = ((node, read_affine(recorder.graph_module, node)) for node in recorder.nodes)
        calls = {
            node: call
            for node, call in read
            if isinstance(call, AffineCall) and hazard(recorder.aliases, call) is None
        }
        regions = list(find_regions(recorder.graph_module, calls, recorder.aliases))
        # Last first: what a region reads may be what an earlier one is replaced by.
        for edge in reversed(regions):
            for part in reversed(self._parts(edge)):
                _replace(recorder, part)
        return PassResult.of(recorder)

    def _parts(self, edge: Edge) -> tuple[Region, ...]:
        """The parts of a region that become one operator each, from its input on."""
        first = min(calls_of(edge.region), key=lambda call: call.input is not edge.source)
        barred: list[Region] = []

        def able(part: Region) -> bool:
            return like_of(calls_of(part)) is not None and not any(
                set(leaves(part)) == set(leaves(each)) for each in barred
            )

        while True:
            cover = cheapest_cover(edge.region, setting_of(first), self.cost, able)
            wide = [part for part in cover.merged if _overflow(part) is not None]
            if not wide:
                return cover.merged
            barred += wide


def calls_of(region: Region) -> list[AffineCall]:
    """The calls inside a region."""
    return [cast(AffineCall, leaf.call) for leaf in leaves(region)]


def _operator(leaf: Leaf) -> Operator:
    return leaf.operator


def _overflow(part: Region) -> Refusal | None:
    return overflow(lambda: merge(part, _operator), like_of(calls_of(part)))


def _replace(recorder: Recorder, part: Region) -> None:
    merged = merge(part, _operator)
    assert not isinstance(merged, Refusal)  # its geometry has been merged
    calls = calls_of(part)
    sums = [cast(Node, each) for each in additions(part)]
    nodes = sorted((*(call.node for call in calls), *sums), key=recorder.aliases.place)
    inside = set(nodes)
    given = next(call.input for call in calls if call.input not in inside)
    names = ", ".join(label(node) for node in nodes)
    why = f"one operator instead of {names}"
    recorder.merge(nodes, given, to_module(merged, like_of(calls)), why)
