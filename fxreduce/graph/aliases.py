"""Which values of a graph may share memory, and what an in-place node therefore reaches."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from functools import cache
from itertools import takewhile

import networkx as nx
import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.modules import BorderedConv, ChannelAffine
from fxreduce.graph.nodes import module_of, operation, reads_facts, write_target

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
# What torch's schemas do not tell: these return their argument, or a view of it.
_MAY_RETURN_INPUT = {
    "alpha_dropout",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "broadcast_tensors",
    "cartesian_prod",
    "conj_physical",
    "data",
    "dropout",
    "einsum",
    "feature_alpha_dropout",
    "feature_dropout",
    "getitem",
    "meshgrid",
    "type_as",
    "unsafe_chunk",
    "unsafe_split",
    "unsafe_split_with_sizes",
}


class Aliases:
    """The classes of values that may share memory, for one state of a graph."""

    def __init__(self, graph_module: GraphModule) -> None:
        nodes = list(graph_module.graph.nodes)
        self._place = {node: place for place, node in enumerate(nodes)}
        self._writes = {
            node: target
            for node in nodes
            if (target := write_target(graph_module, node)) is not None
        }
        graph: nx.Graph[Node] = nx.Graph()
        graph.add_nodes_from(nodes)
        constants: dict[object, Node] = {}
        for node in nodes:
            if node.op == "get_attr":  # an attribute may be read more than once
                graph.add_edge(node, constants.setdefault(node.target, node))
            graph.add_edges_from((node, given) for given in self._aliased(graph_module, node))
        self._class = {
            node: index
            for index, members in enumerate(nx.connected_components(graph))
            for node in members
        }
        # Both in the order of execution.
        self._members: dict[int, list[Node]] = {}
        for node in nodes:
            self._members.setdefault(self._class[node], []).append(node)
        self._writes_to: dict[int, list[Node]] = {}
        for write, target in self._writes.items():
            self._writes_to.setdefault(self._class[target], []).append(write)

    def add(self, node: Node, *, place_of: Node, memory_of: Node) -> None:
        """Note a new node, which takes the place of one node and the memory of one."""
        index = self._class[memory_of]
        self._place[node], self._class[node] = self._place[place_of], index
        insort(self._members[index], node, key=self._place.__getitem__)

    def erase(self, node: Node) -> None:
        """Forget a node; values that it alone tied together are still said to share memory."""
        self._members[self._class[node]].remove(node)
        target = self._writes.pop(node, None)
        if target is not None:
            self._writes_to[self._class[target]].remove(node)

    def place(self, node: Node) -> int:
        """The node's place in the order of execution."""
        return self._place[node]

    @property
    def are_never_overwritten(self) -> bool:
        """Whether no node of the graph works in place."""
        return not self._writes

    def share_memory(self, a: Node, b: Node) -> bool:
        """Whether the two values may share memory."""
        return self._class[a] == self._class[b]

    def overwritten_between(self, value: Node, first: Node, last: Node) -> bool:
        """Whether a node after `first` and before `last` may overwrite `value` in place."""
        writes = self._writes_to.get(self._class[value], [])
        after = bisect_right(writes, self._place[first], key=self._place.__getitem__)
        return after < len(writes) and self._place[writes[after]] < self._place[last]

    def overwritten(self, value: Node) -> Node | None:
        """The first node that may overwrite `value` in place, or None."""
        return next(iter(self._writes_to.get(self._class[value], ())), None)

    def changed_constant(self, node: Node) -> Node | None:
        """A parameter or buffer that the node reads and that the graph may overwrite, or None."""
        constants = (given for given in node.all_input_nodes if given.op == "get_attr")
        return next((given for given in constants if self.overwritten(given)), None)

    def is_private(self, value: Node, reader: Node) -> bool:
        """Whether only `reader` reads `value`, in memory that holds nothing else."""
        alone = len(self._members[self._class[value]]) == 1
        return alone and set(value.users) == {reader} and value.op not in _OWNED_BY_OTHERS

    def others_see(self, write: Node) -> Sequence[Node]:
        """Values that an in-place node changes besides its argument, and that are read later.

        The caller's tensor behind a placeholder counts as read later. Other nodes change nothing.
        """
        target = self._writes.get(write)
        if target is None:
            return []
        place = self._place[write]
        earlier = takewhile(
            lambda node: self._place[node] < place, self._members[self._class[target]]
        )
        return [
            node
            for node in earlier
            if node.op in _OWNED_BY_OTHERS or any(self._place[user] > place for user in node.users)
        ]

    def _aliased(self, graph_module: GraphModule, node: Node) -> Sequence[Node]:
        """The inputs that the node's value may be, or be a view of."""
        if node.op in (*_OWNED_BY_OTHERS, "output"):
            return ()
        if node in self._writes:
            return (self._writes[node],)
        return node.all_input_nodes if _may_alias_inputs(graph_module, node) else ()


def _may_alias_inputs(graph_module: GraphModule, node: Node) -> bool:
    module = module_of(graph_module, node)
    if module is not None:
        return not makes_fresh(module)
    if reads_facts(node):
        return False
    name = operation(node)
    return name is None or _may_view(name)


def makes_fresh(module: nn.Module) -> bool:
    """Whether the module, which does not work in place, returns memory of its own."""
    if isinstance(module, (BorderedConv, BorderCorrectedConv, ChannelAffine)):
        return True
    home, _, family = type(module).__module__.rpartition(".")
    fresh = home == "torch.nn.modules" and family in _FRESH_MODULES
    return fresh and not isinstance(module, nn.Identity)


@cache
def _may_view(name: str) -> bool:
    """Whether an operator of that name may return a view, by the schemas that torch declares."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name in _MAY_RETURN_INPUT:
        return True
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return any(
        value.alias_info is not None and not value.alias_info.is_write
        for schema in schemas
        for value in schema.returns
    )
