"""Numbers that are inputs of a graph: a norm's eps, where sizes are dynamic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxreduce.graph.nodes import operation

_NORMS = {"batch_norm", "layer_norm", "rms_norm"}


@dataclass(frozen=True)
class NumberInput:
    """An input of the graph that is one number, of which norms read the value.

    Attributes:
        index: its place among the inputs.
        node: the name of its placeholder.
        reads: the names of the nodes that read the value.
        value: what it was at the time of compilation.
    """

    index: int
    node: str
    reads: tuple[str, ...]
    value: float


def are_same(numbers: Sequence[NumberInput], inputs: Sequence[Any]) -> bool:
    """Whether each number among the inputs is what it was at the time of compilation."""
    return all(inputs[number.index].item() == number.value for number in numbers)


def find_numbers(graph_module: GraphModule, inputs: Sequence[Any]) -> tuple[NumberInput, ...]:
    """The options of norms among the inputs; other numbers may be others at every call."""
    return tuple(_numbers(graph_module, inputs))


def _numbers(graph_module: GraphModule, inputs: Sequence[Any]) -> Iterator[NumberInput]:
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    for index, (node, value) in enumerate(zip(placeholders, inputs, strict=True)):
        if type(value) is not Tensor or value.dim() or value.dtype is not torch.float64:
            continue
        reads = tuple(node.users)
        users = [user for read in reads for user in read.users]
        known = [operation(read) == "item" for read in reads]
        known += [operation(user) in _NORMS for user in users]
        if users and all(known):
            yield NumberInput(index, node.name, tuple(r.name for r in reads), value.item())
