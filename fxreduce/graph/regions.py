"""Regions of affine operators and sums with one input and one output, found by reduction.

Values are vertices; an operator is an edge from what it reads to what it writes, and a sum has an
edge from either of its operands. Two edges that meet in a value which nothing else reads are
one edge (series), and two from one value into one sum as well (parallel). What is left when
neither applies are the maximal regions that are series-parallel.
Source: Valdes, Tarjan and Lawler, The recognition of series parallel digraphs, 1982.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.nodes import argument, operation
from fxreduce.operators.regions import Leaf, Parallel, Region, additions, series


def sum_operands(node: Node) -> tuple[Node, Node] | None:
    """The two values that the node adds; None where it does something else."""
    left, right = argument(node, 0, "input"), argument(node, 1, "other")
    if operation(node) not in ("add", "add_") or node.kwargs.get("alpha", 1) != 1:
        return None
    if not isinstance(left, Node) or not isinstance(right, Node) or left is right:
        return None
    return left, right


@dataclass(eq=False)
class Edge:
    """A region between two values: what follows one another; a skip where that is nothing."""

    source: Node
    target: Node
    items: list[Region]

    @property
    def region(self) -> Region:
        return series(*self.items)


def find_regions(
    graph_module: GraphModule, calls: dict[Node, AffineCall], aliases: Aliases
) -> Iterator[Edge]:
    """The maximal series-parallel regions with a sum inside, in the order of their ends.

    Args:
        calls: the affine calls that may be merged, by node.
    """
    into: dict[Node, list[Edge]] = {}
    out: dict[Node, list[Edge]] = {}

    def enter(edge: Edge) -> None:
        into.setdefault(edge.target, []).append(edge)
        out.setdefault(edge.source, []).append(edge)

    def leave(edge: Edge) -> None:
        into[edge.target].remove(edge)
        out[edge.source].remove(edge)

    def join(node: Node) -> None:
        """Make one of the two edges that meet in a value which nothing else reads."""
        arriving, leaving = into.get(node, []), out.get(node, [])
        if len(arriving) == len(leaving) == 1 and node not in seen:
            first, second = arriving[0], leaving[0]
            leave(second)
            into[node].remove(first)
            # The second one is short: it has not been joined to what comes behind it.
            first.items += second.items
            first.target = second.target
            into[second.target].append(first)

    nodes = list(graph_module.graph.nodes)
    sums = set[Node]()
    for node in nodes:
        operands = sum_operands(node)
        if node in calls:
            enter(Edge(calls[node].input, node, [Leaf(calls[node].operator, calls[node])]))
        elif operands is not None and not aliases.others_see(node):
            sums.add(node)
            for operand in operands:
                enter(Edge(operand, node, []))
    seen = {node for node in nodes if len(node.users) != len(out.get(node, []))}
    # In graph order: what a value is made of is reduced before the value is.
    for node in nodes:
        if node in sums:
            left, right = into[node]
            branches = left.region, right.region
            if left.source is right.source and _keeps(aliases, left.source, node):
                leave(left)
                leave(right)
                enter(Edge(left.source, node, [Parallel(*branches, node)]))
                join(left.source)
        join(node)
    for node in nodes:
        for edge in into.get(node, []):
            if any(additions(edge.region)):
                yield edge


def _keeps(aliases: Aliases, given: Node, node: Node) -> bool:
    """Whether a value is still what it was where the sum of its branches stands."""
    readers = [user for user in given.users if aliases.place(user) <= aliases.place(node)]
    first = min(readers, key=aliases.place)
    return not aliases.overwritten_between(given, first, node)
