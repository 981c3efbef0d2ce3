"""The tensors of a graph by name, and what they are there: parameter or buffer, tied or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.errors import UnsupportedError
from fxreduce.graph.modules import is_channels_last
from fxreduce.graph.nodes import attribute
from fxreduce.saving.graphs import saved_nodes


def describe_tensors(graph_module: GraphModule) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that the graph uses, each once, and a description of every one of their names.

    Raises:
        UnsupportedError: the graph reads an attribute that is no tensor.
    """
    found: dict[str, Tensor] = {}
    for node in saved_nodes(graph_module):
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            for kind in (module.named_parameters, module.named_buffers):
                for name, tensor in kind(remove_duplicate=False):
                    found[f"{node.target}.{name}"] = tensor
        elif node.op == "get_attr":
            value = attribute(graph_module, str(node.target))
            if not isinstance(value, Tensor):
                raise UnsupportedError(
                    f"a saved graph reads tensors; {node.target} is of {type(value).__name__}"
                )
            found[str(node.target)] = value
    first: dict[int, str] = {}
    stored, described = {}, {}
    for name, tensor in found.items():
        if (tied := first.setdefault(id(tensor), name)) == name:
            stored[name] = tensor
        described[name] = _describe(graph_module, name, tensor) | {"tied": tied}
    return stored, described


def _describe(graph_module: GraphModule, name: str, tensor: Tensor) -> dict[str, Any]:
    path, _, leaf = name.rpartition(".")
    return {
        "parameter": isinstance(tensor, nn.Parameter),
        "trained": tensor.requires_grad,
        "persistent": leaf not in graph_module.get_submodule(path)._non_persistent_buffers_set,
        "channels_last": tensor.dim() == 4 and is_channels_last(tensor),
    }


def place_tensors(
    root: nn.Module, stored: Mapping[str, Tensor], described: Mapping[str, Any]
) -> None:
    """Give the module and its parts the tensors, tied as they were; parts that lack are made.

    Raises:
        KeyError, TypeError, ValueError: the description is damaged.
    """
    made: dict[str, Tensor] = {}
    for name, each in described.items():
        if (tied := each["tied"]) not in made:
            made[tied] = _made(stored[tied], each)
        path, _, leaf = name.rpartition(".")
        owner = _owner(root, path)
        if each["parameter"]:
            owner.register_parameter(leaf, made[tied])  # type: ignore[arg-type]
        else:
            owner.register_buffer(leaf, made[tied], persistent=each["persistent"])


def _made(tensor: Tensor, described: Mapping[str, Any]) -> Tensor:
    if described["channels_last"]:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    if described["parameter"]:
        return nn.Parameter(tensor, requires_grad=described["trained"])
    return tensor


def _owner(root: nn.Module, path: str) -> nn.Module:
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root
