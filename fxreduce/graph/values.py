"""Names of a graph's values, which the nodes that take over a value keep through rewrites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import module_path, operation

VALUE = "fxreduce.value"  # node.meta key: the name of the node's value
NUMBER = "fxreduce.number"  # node.meta key of inputs that torch.compile adds: sizes and the like


def name_values(graph_module: GraphModule) -> None:
    """Write on each node the name of its value, the same whatever captured the graph.

    It is the path of the module that computes it, or of the weight that does, or the path of the
    module around it and the operation; later values under one name get `#1`, `#2`, ... An input is
    named by its place among the tensors.
    """
    calls: Counter[str] = Counter()
    for node in graph_module.graph.nodes:
        path = _path(node)
        count = calls[path]
        calls[path] += 1
        node.meta[VALUE] = f"{path}#{count}" if count else path


def by_value(graph_module: GraphModule) -> dict[str, Node]:
    """The nodes by the names of their values."""
    return {node.meta[VALUE]: node for node in graph_module.graph.nodes if VALUE in node.meta}


def crosses(end: Node, start: str | None, wanted: Collection[Node]) -> bool:
    """Whether one of the wanted nodes lies between the value `start` and the node `end`, or is it.

    Without such a value, whether one lies anywhere before it.
    """
    waiting, seen = [end], set[Node]()
    while waiting:
        node = waiting.pop()
        if node in wanted:
            return True
        if node.meta[VALUE] != start and node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return False


def _path(node: Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    if node.op == "placeholder":
        return "number" if NUMBER in node.meta else "input"
    weights = [given for given in node.all_input_nodes if given.op == "get_attr"]
    if weights and (path := str(weights[0].target).rpartition(".")[0]):
        return path
    path, kind = module_path(node)
    if path and _is_leaf(kind):
        return path
    name = (operation(node) or node.name).rstrip("_")
    return f"{path}.{name}" if path else name


def _is_leaf(kind: Any) -> bool:
    """Whether a symbolic trace calls modules of the class, given it or its name, as a whole."""
    name = f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)
    return name.startswith("torch.nn.")
