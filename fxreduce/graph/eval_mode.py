"""Graphs are captured in eval mode: modules and graphs in train mode are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from fxreduce.errors import CaptureError
from fxreduce.graph.nodes import argument, module_of, operation

_MODE_DEPENDENT = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
    nn.RReLU,
)


def require_eval(module: nn.Module) -> None:
    """Raise CaptureError where a model, or a part of it that the mode matters to, is training."""
    for name, part in module.named_modules():
        if part.training and (part is module or isinstance(part, _MODE_DEPENDENT)):
            seen = f"{type(part).__name__} {name}".strip()
            raise CaptureError(
                f"a model is captured in eval mode; {seen} is in train mode: call model.eval() "
                "first"
            )


def refuse_training(graph_module: GraphModule) -> None:
    """Refuse a graph that was traced in train mode, with dropout or batch-norm baked on."""
    for node in graph_module.graph.nodes:
        module = module_of(graph_module, node)
        if _is_told_to_train(node) or (isinstance(module, _MODE_DEPENDENT) and module.training):
            raise CaptureError(
                f"a graph is captured in eval mode; {node.name} ({node.target}) is in train mode: "
                "call eval() on the model and capture it again; a functional one needs "
                "training=self.training"
            )


def _is_told_to_train(node: Node) -> bool:
    """Whether the function that the node calls has a `training` argument, and it is true."""
    if node.op != "call_function":
        return False
    parameters = parameters_of(cast(Callable[..., Any], node.target))

    def given(name: str) -> Any:
        return argument(node, *parameters[name])

    if not any(given(name) for name in ("training", "train") if name in parameters):
        return False
    # Batch-norm without running statistics normalises by the batch's own in eval, too.
    if "running_mean" in parameters:
        return given("running_mean") is not None
    return "batch_norm" not in (operation(node) or "")


@cache
def parameters_of(function: Callable[..., Any]) -> dict[str, tuple[int, str, Any]]:
    """Place, name and default of each parameter of a Python function or ATen operator, by name."""
    if isinstance(function, OpOverload):
        given = [(each.name, each.default_value) for each in function._schema.arguments]
    else:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # a builtin: torch.dropout is ATen's
            packet = getattr(torch.ops.aten, getattr(function, "__name__", ""), None)
            overload = getattr(packet, "default", None)
            return {} if overload is None else parameters_of(overload)
        given = [(each.name, each.default) for each in signature.parameters.values()]
    return {name: (place, name, default) for place, (name, default) in enumerate(given)}
