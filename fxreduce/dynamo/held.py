"""Graphs of torch.compile that hold their weights, as they do where inductor is told to freeze."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fxreduce.dynamo.inner import Run
from fxreduce.graph.nodes import attribute, tensor_of


class Held:
    """Runs what takes the weights of a graph as its last inputs on the ones that it holds."""

    __slots__ = ("_run", "_weights")

    def __init__(self, run: Run, weights: tuple[Tensor, ...]) -> None:
        self._run = run
        self._weights = weights

    def __call__(self, *args: Any) -> Any:
        return self._run(*args, *self._weights)


def weights_as_inputs(graph_module: GraphModule) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """The graph with the parameters and buffers that it holds as its last inputs, and these.

    With `torch._inductor.config.freezing` torch.compile makes weights attributes of its graphs, of
    whichever backend. The graph that is given stays as it is, and is returned where it holds none.
    """
    sources: Mapping[str, Any] = getattr(graph_module, "_param_name_to_source", None) or {}
    read = {
        str(node.target): tensor
        for node in graph_module.graph.find_nodes(op="get_attr")
        if (tensor := tensor_of(graph_module, node)) is not None
        and (isinstance(tensor, nn.Parameter) or str(node.target) in sources)
    }
    if not read:
        return graph_module, ()
    graph = Graph()
    env: dict[Node, Node] = {}
    for node in graph_module.graph.find_nodes(op="placeholder"):
        env[node] = graph.node_copy(node)
        _keep_source(env[node], getattr(node, "_dynamo_source", None))
    inputs = {path: graph.placeholder(path.replace(".", "_")) for path in read}
    for path, node in inputs.items():
        _keep_source(node, sources.get(path))
    attributes: dict[str, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in inputs:
            env[node] = inputs[str(node.target)]
            env[node].meta.update(node.meta)
        elif node.op != "placeholder":
            env[node] = graph.node_copy(node, env.__getitem__)
            if node.op in ("get_attr", "call_module"):
                attributes[str(node.target)] = attribute(graph_module, str(node.target))
    return GraphModule(attributes, graph), tuple(read.values())


def _keep_source(node: Node, source: Any) -> None:
    """Note where an input is from, as torch.compile does."""
    if source is not None:
        node._dynamo_source = source
