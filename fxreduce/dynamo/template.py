"""A graph of torch.compile with its weights as attributes, whose values are still open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fxreduce.dynamo.numbers import NumberInput
from fxreduce.dynamo.weights import WeightInput, module_name
from fxreduce.graph.nodes import SHAPE, attribute
from fxreduce.graph.setting import example_size
from fxreduce.graph.values import NUMBER

_STACK = "nn_module_stack"


@dataclass(frozen=True)
class Template:
    """A graph that becomes a graph module for each set of weights.

    Attributes:
        graph: reads the weights by `get_attr`; its nodes know their shapes and modules.
        weights: the inputs that the attributes stand for.
        inputs: the place of every other input among those of the original graph, by its target.
        attributes: what the original graph read by `get_attr` or called.
        sized: whether all sizes are the same at every call, but for those of batches.
    """

    graph: Graph
    weights: tuple[WeightInput, ...]
    inputs: Mapping[str, int]
    attributes: Mapping[str, Any]
    sized: bool = True

    @classmethod
    def of(
        cls,
        graph_module: GraphModule,
        weights: Sequence[WeightInput],
        numbers: Sequence[NumberInput] = (),
    ) -> Template:
        """The template of a graph module, which stays as it is; numbers are written into it."""
        graph = Graph()
        env: dict[Node, Any] = {}
        paths = {weight.node: weight.path for weight in weights}
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        known = {*paths, *(each.node for each in numbers)}
        inputs = {str(p.target): i for i, p in enumerate(placeholders) if p.name not in known}
        fixed = {call: each.value for each in numbers for call in each.reads}
        for node in graph_module.graph.nodes:
            if node.op == "placeholder" and node.name in paths:
                env[node] = graph.create_node("get_attr", paths[node.name], name=node.name)
            elif node.op == "placeholder" and node.name in known:
                continue
            elif node.name in fixed:
                env[node] = fixed[node.name]
                continue
            else:
                env[node] = graph.node_copy(node, env.__getitem__)
            env[node].meta = _facts(node)
        attributes = {
            str(node.target): attribute(graph_module, str(node.target))
            for node in graph_module.graph.nodes
            if node.op in ("get_attr", "call_module")
        }
        sized = all(map(is_sized, graph_module.graph.nodes))
        return cls(graph, tuple(weights), inputs, attributes, sized)

    def bind(self, values: Sequence[Tensor]) -> GraphModule:
        """The graph module with these weights as attributes, as they are."""
        pairs = zip(self.weights, values, strict=True)
        named = {weight.path: value for weight, value in pairs}
        return GraphModule({**self.attributes, **named}, deepcopy(self.graph))


def is_sized(node: Node) -> bool:
    """Whether every size of the node's value but the first is the same at every call.

    torch.compile guards such sizes, torch.export checks them.
    """
    value = node.meta.get("example_value", node.meta.get("val"))
    return not isinstance(value, Tensor) or all(type(each) is int for each in value.shape[1:])


def _facts(node: Node) -> dict[str, Any]:
    """What passes may know of a node: nothing that keeps example values or weights alive."""
    facts: dict[str, Any] = {}
    value = node.meta.get("example_value")
    if node.op == "placeholder" and not isinstance(value, Tensor):
        facts[NUMBER] = True
    shape = getattr(value, "shape", None)
    if shape is not None:
        # Passes hold for every size; symbols would be specialised by looking at them.
        facts[SHAPE] = tuple(map(example_size, shape))
    if stack := node.meta.get(_STACK):
        facts[_STACK] = {key: (module_name(path), kind) for key, (path, kind) in stack.items()}
    return facts
