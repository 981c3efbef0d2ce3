"""A merged graph with its weights as inputs again, of which some are folded from several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer

from fxreduce.graph.aliases import Aliases
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.modules import BorderedConv
from fxreduce.graph.nodes import SHAPE, attribute, operation, tensor_of

_FOLDED = "fxreduce_folded_"


@dataclass(frozen=True)
class Lifted:
    """A graph module without parameters, and what to call it with.

    Attributes:
        graph_module: takes some of the original inputs, then the folded weights; it calls
            functions alone.
        inputs: the places of the former among the original inputs.
        folded: the latter: plain tensors.
    """

    graph_module: GraphModule
    inputs: tuple[int, ...]
    folded: tuple[Tensor, ...]

    @property
    def structure(self) -> tuple[Any, ...]:
        """Equal for two that differ in the values of the folded weights alone."""
        layouts = [
            (each.shape, each.stride(), each.dtype, each.device, each.storage_offset())
            for each in self.folded
        ]
        return (self.graph_module.code, self.inputs, *layouts)


class _EveryCall(Tracer):
    """Traces through every module, down to the functions that it calls."""

    # The methods of a tensor itself take no traced sizes on torch 2.6, those of a traced one do.
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return False


class _Call(nn.Module):
    """Calls a module on one tensor, so that its other arguments are what they are by default."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


def lift(
    merged: GraphModule,
    inputs: Mapping[str, int],
    weights: Mapping[int, tuple[str, int]],
    sized: bool = True,
) -> Lifted:
    """Turn every parameter, buffer and module of a merged graph into inputs and functions.

    Args:
        merged: its placeholders are some of the original inputs.
        inputs: the place of each of them among the original inputs, by name.
        weights: name and place of the inputs that the merged graph has as attributes instead, by
            the identity of the tensors.
        sized: whether all sizes but those of batches are what the nodes know them to be.
    """
    return _Lifter(merged, inputs, weights, sized).run()


def _listed(graph_module: GraphModule, call: Node, sized: bool) -> nn.Module:
    """The module that a node calls, in a form that is a list of functions for the node's input."""
    module = graph_module.get_submodule(str(call.target))
    (given,) = call.all_input_nodes
    shape = given.meta.get(SHAPE)
    if shape is None or not (sized and isinstance(module, (BorderedConv, BorderCorrectedConv))):
        return module
    return module.for_sizes(shape[-module.rank :])


class _Lifter:
    def __init__(
        self,
        merged: GraphModule,
        inputs: Mapping[str, int],
        weights: Mapping[int, tuple[str, int]],
        sized: bool,
    ) -> None:
        self._merged = merged
        self._sized = sized
        self._places = dict(inputs)
        self._weights = weights
        self._graph = Graph()
        self._nodes: dict[Node, Any] = {}
        self._tensors: dict[int, Node] = {}  # the input that a tensor became, by its identity
        self._folded: list[Tensor] = []
        self._traced: dict[Node, GraphModule] = {}

    def run(self) -> Lifted:
        # A graph's inputs come first.
        order = self._declare(self._read_tensors())
        attributes: dict[str, Any] = {}
        for node in self._merged.graph.nodes:
            if node.op == "output":
                self._graph.output(self._output(node))
            elif node.op == "call_module":
                self._nodes[node] = self._inline(node)
            elif (tensor := tensor_of(self._merged, node)) is not None:
                self._nodes[node] = self._tensors[id(tensor)]
            elif node.op != "placeholder":
                self._nodes[node] = self._graph.node_copy(node, self._nodes.__getitem__)
                if node.op == "get_attr":  # the body of a control-flow operator
                    attributes[str(node.target)] = attribute(self._merged, str(node.target))
        for node in self._graph.nodes:
            node.meta.clear()
        lifted = GraphModule(attributes, self._graph)
        return Lifted(lifted, order, tuple(self._folded))

    def _read_tensors(self) -> dict[int, Tensor]:
        """Every parameter, buffer and constant that the graph reads, in order, by identity."""
        read: dict[int, Tensor] = {}
        for node in self._merged.graph.nodes:
            if node.op == "call_module":
                module = _Call(_listed(self._merged, node, self._sized))
                owner = GraphModule(module, _EveryCall().trace(module))
                self._traced[node] = owner
                nodes = list(owner.graph.nodes)
            else:
                owner, nodes = self._merged, [node]
            found = [tensor_of(owner, each) for each in nodes]
            read.update({id(tensor): tensor for tensor in found if tensor is not None})
        return read

    def _declare(self, read: Mapping[int, Tensor]) -> tuple[int, ...]:
        """Make the placeholders; returns the places of the original inputs among them."""
        originals = {
            self._places[str(node.target)]: node
            for node in self._merged.graph.find_nodes(op="placeholder")
        }
        kept = {
            place: (name, identity)
            for identity in read
            if identity in self._weights
            for name, place in (self._weights[identity],)
        }
        order = sorted((*originals, *kept))
        for place in order:
            if place in originals:
                node = originals[place]
                self._nodes[node] = self._graph.placeholder(node.name)
            else:
                name, weight = kept[place]
                self._tensors[weight] = self._graph.placeholder(name)
        for identity, tensor in read.items():
            if identity not in self._weights:
                self._tensors[identity] = self._graph.placeholder(f"{_FOLDED}{len(self._folded)}")
                self._folded.append(tensor.detach().clone())  # no view, nor the model's own
        return tuple(order)

    def _inline(self, call: Node) -> Any:
        """The functions that a module calls, in place of the call."""
        traced = self._traced[call]
        (given,) = call.all_input_nodes
        inside: dict[Node, Any] = {}
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                inside[node] = self._nodes[given]
            elif node.op == "output":
                return torch.fx.node.map_arg(node.args[0], inside.__getitem__)
            elif (tensor := tensor_of(traced, node)) is not None:
                inside[node] = self._tensors[id(tensor)]
            else:
                inside[node] = self._graph.node_copy(node, inside.__getitem__)
        raise AssertionError("a graph ends in its output")

    def _output(self, node: Node) -> Any:
        """The outputs; a folded weight is copied, as the caller may overwrite what it gets."""

        def given(each: Node) -> Node:
            value: Node = self._nodes[each]
            own = value.op == "placeholder" and value.name.startswith(_FOLDED)
            return self._graph.call_method("clone", (value,)) if own else value

        return torch.fx.node.map_arg(node.args[0], given)


def bake(lifted: Lifted, values: Mapping[int, Tensor]) -> Lifted:
    """The same with weights as constants: the folded ones, and inputs by their places.

    What has a number for each position and is added stays an input: inductor adds a constant that
    looks like the result of a convolution within it, into the constant's own memory.
    """
    placeholders = lifted.graph_module.graph.find_nodes(op="placeholder")
    given = [*map(values.get, lifted.inputs), *lifted.folded]
    added = set(_added(lifted.graph_module, placeholders))
    constants = {
        node: value
        for node, value in zip(placeholders, given, strict=True)
        if value is not None and not (node in added and value.dim() > 1 and value.shape[-1] > 1)
    }
    graph = Graph()
    nodes: dict[Node, Node] = {}
    attributes: dict[str, Any] = dict(lifted.graph_module.named_modules())
    for node in lifted.graph_module.graph.nodes:
        if node in constants:
            attributes[node.name] = constants[node].detach()
            nodes[node] = graph.get_attr(node.name)
        else:
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
    kept = [node not in constants for node in placeholders]
    inputs = tuple(compress(lifted.inputs, kept))
    folded = tuple(compress(lifted.folded, kept[len(lifted.inputs) :]))
    return Lifted(GraphModule(attributes, graph), inputs, folded)


def _added(graph_module: GraphModule, placeholders: Sequence[Node]) -> Iterator[Node]:
    """Those of the inputs that are added to something, as they are or as views."""
    aliases = Aliases(graph_module)
    for node in graph_module.graph.nodes:
        if operation(node) in ("add", "add_"):
            for given in node.all_input_nodes:
                yield from (each for each in placeholders if aliases.share_memory(each, given))
