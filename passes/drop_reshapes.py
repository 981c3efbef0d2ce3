"""Drop a reshaping of tokens to rows that only undoes the one before.

    Before: y = addmm(b, x, W); s = view(y, (n, t, c)); r = view(s, (-1, c)); z = addmm(d, r, V)
    After:  y = addmm(b, x, W); z = addmm(d, y, V)

Exact: y and r have two axes, the last one of the same length, and hold the same values in the same
order. Restrictions: the shape of y is known, and its last axis has a fixed length. Cost: a call
less; what stood between two operators stands there no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import argument, operation, shape_of
from fxreduce.graph.recorder import Recorder
from fxreduce.passes.base import PassResult

_RESHAPES = ("view", "reshape")


@dataclass(frozen=True)
class DropReshapes:
    """Drop a reshaping of tokens to rows that only undoes the one before."""

    name: ClassVar[str] = "drop_reshapes"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            rows = _undone(node)
            if rows is None:
                continue
            between = node.all_input_nodes[0]
            recorder.replace(node, rows, f"{node.name} undoes {between.name}")
            if not between.users:
                recorder.erase(between, "nothing reads it any more")
        return PassResult.of(recorder)


def _undone(node: Node) -> Node | None:
    """The rows [n, c] that the node makes again of what another reshaping made of them."""
    sizes = _sizes(node)
    between = node.args[0] if node.args else None
    if sizes is None or len(sizes) != 2 or not isinstance(between, Node) or _sizes(between) is None:
        return None
    rows = between.args[0]
    shape = shape_of(rows)
    if not isinstance(rows, Node) or shape is None or len(shape) != 2:
        return None
    columns: Any = shape[1]
    return rows if isinstance(columns, int) and sizes[1] == columns else None


def _sizes(node: Node) -> tuple[Any, ...] | None:
    """The sizes that a reshaping is told, given as one sequence or one by one."""
    if operation(node) not in _RESHAPES:
        return None
    first = argument(node, 1, "shape", node.kwargs.get("size"))
    return tuple(first) if isinstance(first, (tuple, list)) else tuple(node.args[1:])
