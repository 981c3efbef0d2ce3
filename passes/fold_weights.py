"""Compute once what the graph computes at every call from parameters alone: operators' weights.

    Before: w = standardise(self.weight) * self.gain; y = conv2d(x, w, b)
    After:  y = conv2d(x, self.folded, b)

Exact: the same torch operators compute the weight, in its own dtype. It is then a constant that
convolutions and Linear layers are read with, so that they merge. Restrictions: nothing on the way
is random or writes to a tensor, and the graph overwrites none of the parameters. Only weights and
biases of convolutions and Linear layers are folded. Cost: what computed the weight is gone. In the
result the folded weight is trained, no longer what it was computed from, as it is for all that
merges. Source: weight standardisation, Qiao et al. 2019; weight normalisation, Salimans and Kingma
2016, as torch.export shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxreduce.graph.nodes import (
    argument,
    module_path,
    operation,
    reads_facts,
    tensor_of,
    write_target,
)
from fxreduce.graph.origins import ORIGINS, origins
from fxreduce.graph.recorder import Recorder
from fxreduce.passes.base import PassResult

_READERS = {"linear", "convolution"} | {
    f"{kind}{rank}d" for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)
}
_ROLES = ("weight", "bias")  # which stand behind the input
# Functions of torch that ATen has no operator of the same name for, none of them random.
_COMPOSED = {"getitem", "normalize", "float", "double", "half"}
_RANDOM = torch.Tag.nondeterministic_seeded


@dataclass(frozen=True)
class FoldWeights:
    """Compute weights of operators once that the graph computes from parameters alone."""

    name: ClassVar[str] = "fold_weights"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        computed = _computed(recorder)
        values: dict[Node, Any] = {}
        folded = set[Node]()
        for node in recorder.nodes:
            if operation(node) not in _READERS:
                continue
            for place, role in enumerate(_ROLES, 1):
                given = argument(node, place, role)
                if given in computed:  # what is folded is read by nobody any more
                    _fold(recorder, given, node, role, values)
                    folded.add(given)
        for node in reversed(computed):
            if not node.users and node not in folded:
                recorder.erase(node, "its value is folded")
        return PassResult.of(recorder)


def _computed(recorder: Recorder) -> dict[Node, None]:
    """The nodes whose values follow from parameters and constants alone, in order."""
    computed: dict[Node, None] = {}
    for node in recorder.nodes:
        inputs = node.all_input_nodes
        fixed = (each in computed or _is_kept(recorder, each) for each in inputs)
        if inputs and _is_pure(recorder.graph_module, node) and all(fixed):
            computed[node] = None
    return {node: None for node in computed if recorder.aliases.overwritten(node) is None}


def _is_kept(recorder: Recorder, node: Node) -> bool:
    """Whether the node is a constant that the graph does not overwrite."""
    constant = tensor_of(recorder.graph_module, node)
    return constant is not None and recorder.aliases.overwritten(node) is None


def _is_pure(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node calls a function of torch that gives the same value at every call."""
    name = operation(node)
    if name is None or write_target(graph_module, node) is not None:
        return reads_facts(node)
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return name in _COMPOSED
    return all(_RANDOM not in getattr(packet, each).tags for each in packet.overloads())


def _fold(recorder: Recorder, node: Node, reader: Node, role: str, values: dict[Node, Any]) -> None:
    """Let all readers of a computed weight read a parameter of its value."""
    graph_module = recorder.graph_module
    with torch.no_grad():
        value = _value(graph_module, node, values)
    sources = _sources(graph_module, node)
    path = ".".join(filter(None, (module_path(reader)[0], role)))
    why = f"{role} of {reader.name} is computed from parameters alone"
    folded = recorder.constant(
        path, value.clone(), any(each.requires_grad for each in sources), node, why
    )
    folded.meta[ORIGINS] = origins(graph_module, (node,))
    recorder.replace(node, folded, why)


def _value(graph_module: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    """The value of a computed node; those on the way to it are kept."""
    if (constant := tensor_of(graph_module, node)) is not None:
        return constant.detach()
    if node not in values:
        for given in node.all_input_nodes:
            _value(graph_module, given, values)
        args, kwargs = map_arg(
            (node.args, node.kwargs), lambda each: _value(graph_module, each, values)
        )
        if node.op == "call_method":
            first, *rest = args
            values[node] = getattr(first, cast(str, node.target))(*rest, **kwargs)
        else:
            values[node] = cast(Any, node.target)(*args, **kwargs)
    return values[node]


def _sources(graph_module: GraphModule, node: Node) -> list[Tensor]:
    """The constants that a node is computed from."""
    constant = tensor_of(graph_module, node)
    if constant is not None:
        return [constant]
    return [each for given in node.all_input_nodes for each in _sources(graph_module, given)]
