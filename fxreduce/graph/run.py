"""Running a graph piece by piece: as far as a node, and on from there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.fx.node import Argument, Target


class NodeByNode(Interpreter):
    """Runs a graph node by node; lists are given to functions as such, as the graph's code does.

    A graph keeps lists of a type that cannot be changed, and some functions change theirs.
    """

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return _plain(args), _plain(kwargs)


def _plain(value: Any) -> Any:
    if isinstance(value, immutable_list):
        return [_plain(each) for each in value]
    if isinstance(value, immutable_dict):
        return {key: _plain(each) for key, each in value.items()}
    if type(value) is tuple:
        return tuple(map(_plain, value))
    return value


class Run(NodeByNode):
    """A run of a graph on one batch that stops where it is told to.

    Modules are looked up when they are called, so that weights may change on the way.

    Args:
        graph_module: edited no more while it runs.
        values: of the placeholders, in order; they may be overwritten.
        keep: nodes whose values are kept, as they are when computed, until they are taken.
    """

    def __init__(
        self, graph_module: GraphModule, values: Sequence[Any], keep: Collection[Node] = ()
    ) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.args_iter = iter(values)
        self._nodes = list(graph_module.graph.nodes)
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._place = 0
        self._keep = set(keep)
        self._kept: dict[Node, Any] = {}
        self._readers = {node: len(node.users) for node in self._nodes}
        self._buffers: dict[object, Tensor] = {}

    def get_attr(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """A parameter as it is now, or this run's own copy of a buffer.

        A graph may write its buffers, and runs on several batches take turns.
        """
        value = super().get_attr(target, args, kwargs)
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            return value
        if target not in self._buffers:
            self._buffers[target] = value.clone()
        return self._buffers[target]

    @torch.no_grad()
    def until(self, node: Node) -> None:
        """Run all nodes before this one."""
        while self._place < self._places[node]:
            self._step()

    def take(self, node: Node) -> Any:
        """The value of a node of `keep`, which is kept no longer."""
        self.until(node)
        if self._place == self._places[node]:
            with torch.no_grad():
                self._step()
        return self._kept.pop(node)

    def bytes(self) -> int:
        """How much memory the values take that are held."""
        sizes = {
            each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
            for each in chain(self.env.values(), self._kept.values())
            if isinstance(each, Tensor)
        }
        return sum(sizes.values())

    def _step(self) -> None:
        node = self._nodes[self._place]
        value = self.run_node(node)
        self._place += 1
        if node in self._keep:
            self._kept[node] = value.clone() if isinstance(value, Tensor) else value
        if self._readers[node]:
            self.env[node] = value
        for given in node.all_input_nodes:
            self._readers[given] -= 1
            if not self._readers[given]:
                del self.env[given]
