"""Which inputs of a graph of torch.compile are weights, and which of them may be folded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.graph.aliases import Aliases
from fxreduce.graph.nodes import argument, operation, write_target

# They overwrite running statistics when they are told to train, and are told so by place.
_TRAINED = {"batch_norm": 5, "instance_norm": 5}
_STEP = re.compile(r"\.?_(?:modules|parameters|buffers)\['([^']+)'\]|\.(\w+)|\['?([^'\]]+)'?\]")


@dataclass(frozen=True)
class WeightInput:
    """An input of the graph that is a weight.

    Attributes:
        index: its place among the inputs.
        node: the name of its placeholder.
        path: its name in the model, as `named_parameters` has it.
        variance: whether it is what a batch-norm moves in train mode, and the mean with it.
    """

    index: int
    node: str
    path: str
    variance: bool = False


def find_weights(graph_module: GraphModule, inputs: Sequence[Any]) -> tuple[WeightInput, ...]:
    """The parameters and buffers among the inputs that the graph only reads.

    Args:
        graph_module: as torch.compile hands it to a backend.
        inputs: the values of its placeholders at the time of compilation.
    """
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    given = dict(zip(placeholders, inputs, strict=True))
    written = set(_overwritten(graph_module))
    # A view of what is overwritten changes with it, under whichever name it comes in.
    memory = {_storage(given[node]) for node in written} - {None}
    found = [
        (index, node)
        for index, (node, value) in enumerate(given.items())
        if _is_weight(node, value) and node not in written and _storage(value) not in memory
    ]
    paths = [_path_of(node) for _, node in found]
    if len(set(paths)) < len(paths):  # two models in one graph
        paths = [node.name for _, node in found]
    return tuple(
        WeightInput(index, node.name, path, _is_variance(node))
        for (index, node), path in zip(found, paths, strict=True)
    )


def module_name(path: str) -> str:
    """The name of a module as `named_modules` has it, from the expression that leads to it."""
    root = re.match(r"L\['\w+'\]|G\['\w+'\]|\w+", path)
    rest = path[root.end() :] if root else path
    return ".".join(next(filter(None, step)) for step in _STEP.findall(rest))


def _is_weight(node: Node, value: Any) -> bool:
    """Whether the input is a parameter, or a tensor that torch.compile found in a module."""
    if _storage(value) is None:
        return False
    held = re.search(r"_buffers\[|_parameters\[", _source(node))
    return type(value) is nn.Parameter or held is not None


def _is_variance(node: Node) -> bool:
    """Whether a batch-norm reads it as its running variance."""
    norms = (user for user in node.users if operation(user) in _TRAINED)
    # F.batch_norm(input, mean, var, weight, bias, ...); ATen's own: weight and bias first.
    places = ((each, 2 if hasattr(each.target, "__code__") else 4) for each in norms)
    return any(argument(each, place, "running_var") is node for each, place in places)


def _source(node: Node) -> str:
    """The expression that leads to the input: `L['self']._modules['0']._parameters['weight']`."""
    source: Any = getattr(node, "_dynamo_source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _path_of(node: Node) -> str:
    return module_name(_source(node)) or node.name


def _storage(value: Any) -> int | None:
    """Where the memory of a plain tensor begins; None for whatever else an input may be."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
        return None
    return int(value.untyped_storage().data_ptr())


def _overwritten(graph_module: GraphModule) -> Iterator[Node]:
    """Inputs that the graph overwrites, or may overwrite for all that is known."""
    aliases = Aliases(graph_module)
    suspects = [
        given
        for node in graph_module.graph.nodes
        for given in node.all_input_nodes
        if _may_write(graph_module, node, given)
    ]
    for placeholder in graph_module.graph.find_nodes(op="placeholder"):
        suspect = any(aliases.share_memory(placeholder, each) for each in suspects)
        if suspect or aliases.overwritten(placeholder) is not None:
            yield placeholder


def _may_write(graph_module: GraphModule, node: Node, given: Node) -> bool:
    """Whether a node may overwrite one of its arguments in a way that its name does not tell."""
    name = operation(node)
    if node.op == "output":
        return False
    if name is None:
        return node.target is not getattr
    if name in _TRAINED:
        trained = argument(node, _TRAINED[name], "training", node.kwargs.get("use_input_stats"))
        return trained is not False
    alone = write_target(graph_module, node)
    return name.endswith("_") and not name.endswith("__") and (alone is None or alone is given)
