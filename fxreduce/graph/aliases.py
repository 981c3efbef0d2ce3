"""Which values of a graph may share memory, and what an in-place node therefore reaches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

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
        self._nodes = list(graph_module.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        graph: nx.Graph[Node] = nx.Graph()
        graph.add_nodes_from(self._nodes)
        constants: dict[object, Node] = {}
        for node in self._nodes:
            if node.op == "get_attr":  # an attribute may be read more than once
                graph.add_edge(node, constants.setdefault(node.target, node))
            graph.add_edges_from((node, given) for given in _aliased(graph_module, node))
        self._class = {
            node: index
            for index, members in enumerate(nx.connected_components(graph))
            for node in members
        }
        self._writes = {
            node: target
            for node in self._nodes
            if (target := write_target(graph_module, node)) is not None
        }

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
            for write, target in self._writes.items()
        )

    def overwritten(self, value: Node) -> Node | None:
        """The first node that may overwrite `value` in place, or None."""
        return next(
            (write for write, target in self._writes.items() if self.share_memory(value, target)),
            None,
        )

    def changed_constant(self, node: Node) -> Node | None:
        """A parameter or buffer that the node reads and that the graph may overwrite, or None."""
        constants = (given for given in node.all_input_nodes if given.op == "get_attr")
        return next((given for given in constants if self.overwritten(given)), None)

    def is_private(self, value: Node, reader: Node) -> bool:
        """Whether only `reader` reads `value`, in memory that holds nothing else."""
        alone = not any(
            node is not value and self.share_memory(node, value) for node in self._nodes
        )
        return alone and set(value.users) == {reader} and value.op not in _OWNED_BY_OTHERS

    def others_see(self, write: Node) -> Sequence[Node]:
        """Values that an in-place node changes besides its argument, and that are read later.

        The caller's tensor behind a placeholder counts as read later. Other nodes change nothing.
        """
        target = self._writes.get(write)
        if target is None:
            return []
        return [
            node
            for node in self._nodes[: self._place[write]]
            if self.share_memory(node, target)
            and (
                node.op in _OWNED_BY_OTHERS
                or any(self._place[user] > self._place[write] for user in node.users)
            )
        ]


def _aliased(graph_module: GraphModule, node: Node) -> Sequence[Node]:
    """The inputs that the node's value may be, or be a view of."""
    if node.op in (*_OWNED_BY_OTHERS, "output"):
        return ()
    target = write_target(graph_module, node)
    if target is not None:
        return (target,)
    return node.all_input_nodes if _may_alias_inputs(graph_module, node) else ()


def _may_alias_inputs(graph_module: GraphModule, node: Node) -> bool:
    module = module_of(graph_module, node)
    if module is not None:
        return not _makes_fresh(module)
    if reads_facts(node):
        return False
    name = operation(node)
    return name is None or _may_view(name)


def _makes_fresh(module: nn.Module) -> bool:
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
