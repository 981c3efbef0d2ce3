"""Drop assertions over shapes, and the reads of shapes that nothing else needs.

    Before: y = conv(x); n = y.ndim; _assert(n == 4); z = bn(y)        After: y = conv(x); z = bn(y)

Exact wherever the assertions hold. They stand in the way, as they read the value between two
operators, and where they fail the operators themselves refuse the shape. Restrictions: only shapes
are looked at, no values. Cost: a few calls less.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import operation
from fxreduce.graph.recorder import Recorder
from fxreduce.passes.base import PassResult

_COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
_SHAPE_READS = {"dim", "ndimension", "size", "numel"}
_SHAPES = {"ndim", "shape", "dtype", "device"}


@dataclass(frozen=True)
class DropChecks:
    """Drop assertions over shapes, and the reads of shapes that nothing else needs."""

    name: ClassVar[str] = "drop_checks"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            asserts = node.target is torch._assert and _is_check(node.args[0])
            if asserts or (_reads_shape(node) and not node.users):
                _erase(recorder, node)
        return PassResult.of(recorder)


def _is_check(condition: object) -> bool:
    """Whether the condition is computed from shapes alone."""
    if not isinstance(condition, Node):
        return True
    if condition.target in _COMPARISONS or condition.target is operator.getitem:
        return all(_is_check(given) for given in condition.all_input_nodes)
    return _reads_shape(condition)


def _reads_shape(node: Node) -> bool:
    if node.target is getattr:
        return node.args[1] in _SHAPES
    return operation(node) in _SHAPE_READS


def _erase(recorder: Recorder, node: Node) -> None:
    """Erase a node without users, and what was computed for it alone."""
    inputs = [] if _reads_shape(node) else node.all_input_nodes
    recorder.erase(node, "it only checks a shape")
    for given in inputs:
        if not given.users:
            _erase(recorder, given)
