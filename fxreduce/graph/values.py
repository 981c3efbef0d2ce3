"""Names of a graph's values, which the nodes that take over a value keep through rewrites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from torch.fx import GraphModule, Node

VALUE = "fxreduce.value"  # node.meta key: the name of the node's value


def name_values(graph_module: GraphModule) -> None:
    """Write on each node the name of its value.

    It is the path of the module that computes it, or of the weight that does, so that it is the
    same whatever captured the graph; later calls under one name get `#1`, `#2`, ... A value without
    weights has its node's name.
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
    if node.op == "call_module":
        return str(node.target)
    weights = [given for given in node.all_input_nodes if given.op == "get_attr"]
    if node.op != "call_function" or not weights:
        return node.name
    return str(weights[0].target).rpartition(".")[0] or node.name
