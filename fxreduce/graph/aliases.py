"""Which values of a graph may share memory, and what an in-place node therefore reaches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import networkx as nx
import torch
from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import is_inplace, module_of, operation

_FRESH_MODULES = (
    "conv",
    "batchnorm",
    "linear",
    "pooling",
    "normalization",
    "activation",
    "padding",
)
_OWNED_BY_OTHERS = ("placeholder", "get_attr")
_FRESH = {"getattr", "size", "add", "sub", "mul", "truediv", "matmul"}
_MAY_RETURN_INPUT = {"getitem", "dropout", "feature_dropout", "alpha_dropout"}


class Aliases:
    """The classes of values that may share memory, for one state of a graph."""

    def __init__(self, graph_module: GraphModule) -> None:
        self._nodes = list(graph_module.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        graph: nx.Graph[Node] = nx.Graph()
        graph.add_nodes_from(self._nodes)
        for node in self._nodes:
            if node.op != "output" and _may_alias_inputs(graph_module, node):
                graph.add_edges_from((node, given) for given in node.all_input_nodes)
        self._class = {
            node: index
            for index, members in enumerate(nx.connected_components(graph))
            for node in members
        }
        self._writes = [
            (node, node.args[0])
            for node in self._nodes
            if is_inplace(graph_module, node) and node.args and isinstance(node.args[0], Node)
        ]

    def place(self, node: Node) -> int:
        """The node's place in the order of execution."""
        return self._place[node]

    def share_memory(self, a: Node, b: Node) -> bool:
        """Whether the two values may share memory."""
        return self._class[a] == self._class[b]

    def overwritten_between(self, value: Node, first: Node, last: Node) -> bool:
        """Whether a node after `first` and before `last` may overwrite `value` in place."""
        return any(
            self._place[first] < self._place[write] < self._place[last]
            and self.share_memory(value, target)
            for write, target in self._writes
        )

    def overwritten(self, value: Node) -> Node | None:
        """The first node that may overwrite `value` in place, or None."""
        return next(
            (write for write, target in self._writes if self.share_memory(value, target)), None
        )

    def is_private(self, value: Node, reader: Node) -> bool:
        """Whether only `reader` reads `value`, in memory that holds nothing else."""
        alone = not any(
            node is not value and self.share_memory(node, value) for node in self._nodes
        )
        return alone and set(value.users) == {reader} and value.op not in _OWNED_BY_OTHERS

    def others_see(self, write: Node) -> Sequence[Node]:
        """Values that an in-place node changes besides its argument, and that are read later.

        The caller's tensor behind a placeholder counts as read later.
        """
        target = write.args[0]
        assert isinstance(target, Node)
        return [
            node
            for node in self._nodes[: self._place[write]]
            if self.share_memory(node, target)
            and (
                node.op in _OWNED_BY_OTHERS
                or any(self._place[user] > self._place[write] for user in node.users)
            )
        ]


def _may_alias_inputs(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node's value may be, or be a view of, one of its inputs."""
    if node.op in _OWNED_BY_OTHERS:
        return False
    if is_inplace(graph_module, node):
        return True
    module = module_of(graph_module, node)
    if module is not None:
        home, _, family = type(module).__module__.rpartition(".")
        return home != "torch.nn.modules" or family not in _FRESH_MODULES
    name = operation(node)
    return name is None or _may_view(name)


@cache
def _may_view(name: str) -> bool:
    """Whether an operator of that name may return a view, by the schemas that torch declares."""
    if name in _FRESH:
        return False
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name in _MAY_RETURN_INPUT:
        return True
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return any(
        value.alias_info is not None and not value.alias_info.is_write
        for schema in schemas
        for value in schema.returns
    )
