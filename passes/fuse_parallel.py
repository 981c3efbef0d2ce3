"""Merge two affine branches over one input, or a branch and the skip, that are added.

    f(x) + g(x)  =  add(f, g)(x),        f(x) + x  =  add(f, identity)(x)

    Before: y = conv3x3(x); z = conv1x1(x); w = y + z        After: w = merged(x)

Restrictions: those of `operators.add` (same stride, same shape); each branch has one reader; the
merged operator must not cost more than the branches and their addition. Cost: one call and one read
of the input instead of two, and no addition.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of, read_affine
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import argument, label, operation
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.add import add
from fxreduce.operators.affine import Operator, Refusal, identity, on_meta
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import dearer, rewrite_matches
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard, overflow


@dataclass(frozen=True)
class Branches:
    """Two operators on one input whose values a node adds; the skip has no call."""

    node: Node
    input: Node
    calls: tuple[AffineCall, ...]
    operators: tuple[Operator, Operator]


@dataclass(frozen=True)
class FuseParallel:
    """Merge two affine branches over one input that are added."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "fuse_parallel"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        return rewrite_matches(recorder, match, self._decide, _replace)

    def _decide(self, branches: Branches) -> Branches | Refusal:
        """The branches, or why they stay apart: not exact, or not cheaper."""
        f, g = (on_meta(operator) for operator in branches.operators)
        merged = add(f, g)
        if isinstance(merged, Refusal):
            return merged
        setting = setting_of(branches.calls[0])
        addition = (identity(f.out_channels, f.rank), setting.after(f))
        called = ((operator, setting) for operator in _called(branches, f, g))
        return (
            dearer(self.cost, [(merged, setting)], [addition, *called])
            or overflow(lambda: add(*branches.operators), like_of(branches.calls))
            or branches
        )


def match(recorder: Recorder, node: Node) -> Branches | Refusal | None:
    """The branches that the node adds; None where it is no sum of branches over one input."""
    graph_module = recorder.graph_module
    operands = argument(node, 0, "input"), argument(node, 1, "other")
    if operation(node) not in ("add", "add_") or node.kwargs.get("alpha", 1) != 1:
        return None
    left, right = operands
    if not isinstance(left, Node) or not isinstance(right, Node) or left is right:
        return None
    f, g = read_affine(graph_module, left), read_affine(graph_module, right)
    f_call = f if isinstance(f, AffineCall) else None
    g_call = g if isinstance(g, AffineCall) else None
    calls: tuple[AffineCall, ...]
    if f_call and g_call and f_call.input is g_call.input:
        calls, operators = (f_call, g_call), (f_call.operator, g_call.operator)
    elif f_call and f_call.input is right:
        calls, operators = (f_call,), (f_call.operator, _skip(f_call))
    elif g_call and g_call.input is left:
        calls, operators = (g_call,), (g_call.operator, _skip(g_call))
    else:
        return None
    return _hazard(recorder.aliases, node, calls) or Branches(
        node, calls[0].input, calls, operators
    )


def _called(branches: Branches, *operators: Operator) -> tuple[Operator, ...]:
    """The operators that are called; a skip costs nothing."""
    return operators if len(branches.calls) == 2 else operators[:1]


def _skip(call: AffineCall) -> Operator:
    return identity(call.operator.in_channels, call.operator.rank)


def _hazard(aliases: Aliases, node: Node, calls: tuple[AffineCall, ...]) -> Refusal | None:
    """Why merging would change what other nodes read, if it would."""
    for call in calls:
        if len(call.node.users) > 1:
            return Refusal(f"branch {label(call.node)} has {len(call.node.users)} readers")
    if like_of(calls) is None:
        return Refusal(NUMBERS_ALONE)
    if aliases.others_see(node):
        return Refusal("it overwrites a tensor that others read")
    for call in calls:
        if reason := hazard(aliases, call):
            return reason
    given = calls[0].input
    first = min((call.node for call in calls), key=aliases.place)
    if aliases.overwritten_between(given, first, node):
        return Refusal(f"{label(given)} is overwritten in place between the branches")
    return None


def _replace(recorder: Recorder, branches: Branches) -> None:
    merged = add(*branches.operators)
    assert not isinstance(merged, Refusal)  # its geometry has been composed
    calls = (call.node for call in branches.calls)
    nodes = sorted((branches.node, *calls), key=recorder.aliases.place)
    recorder.merge(
        nodes,
        branches.input,
        to_module(merged, like_of(branches.calls)),
        f"one operator instead of {', '.join(label(node) for node in nodes)}",
    )
