"""Cutting a graph in two: what crosses a cut, and the part behind it as a graph of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Graph, GraphModule, Node

from fxreduce.graph.aliases import Aliases


@dataclass(frozen=True)
class Cut:
    """A cut of a graph before one of its nodes.

    Attributes:
        place: how many nodes are before the cut.
        first: the first node behind it.
        values: the nodes before the cut whose values are read behind it; constants are not among
            them.
    """

    place: int
    first: Node
    values: tuple[Node, ...]


def cuts(graph_module: GraphModule) -> Iterator[Cut]:
    """The cuts at which the values can be kept, and the part behind them run on its own, often.

    That excludes cuts behind which one of the values is overwritten in place, and all of a graph
    that writes its own buffers.
    """
    nodes, aliases = list(graph_module.graph.nodes), Aliases(graph_module)
    if any(node.op == "get_attr" and aliases.overwritten(node) is not None for node in nodes):
        return
    place = {node: number for number, node in enumerate(nodes)}
    last = {node: max(map(place.__getitem__, node.users), default=-1) for node in nodes}
    crossing: list[Node] = []
    for number, before in enumerate(nodes[:-1], 1):
        if before.op != "get_attr":
            crossing.append(before)
        crossing = [node for node in crossing if last[node] >= number]
        if nodes[number].op in ("placeholder", "output"):
            continue
        if not any(aliases.overwritten_between(node, before, nodes[-1]) for node in crossing):
            yield Cut(number, nodes[number], tuple(crossing))


def behind(graph_module: GraphModule, cut: Cut, last: Node) -> GraphModule:
    """The part of a graph from a cut to a node, which it returns; it shares the modules.

    Its inputs are the values of the cut, in their order, under the names of their nodes.
    """
    graph, copies = Graph(), dict[Node, Node]()
    for value in cut.values:
        copies[value] = graph.placeholder(value.name)
        copies[value].meta = dict(value.meta)

    def copy(node: Node) -> Node:
        if node not in copies:  # a constant from before the cut
            copies[node] = graph.node_copy(node)
        return copies[node]

    nodes = list(graph_module.graph.nodes)
    for node in nodes[cut.place : nodes.index(last) + 1]:
        if node not in copies:
            copies[node] = graph.node_copy(node, copy)
    graph.output(copies[last])
    return GraphModule(graph_module, graph)
