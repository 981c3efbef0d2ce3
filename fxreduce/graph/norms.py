"""Reading a node of any dialect as a norm of the last axis with an affine part of its own.

LayerNorm(x) = gamma (x - mean) / sqrt(var + eps) + beta,     RMSNorm(x) = gamma x / rms(x)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import (
    argument,
    has_hooks,
    implements,
    module_input,
    module_of,
    operation,
    tensor_of,
)
from fxreduce.operators.affine import Refusal, ScaleShift

_LAYER_NORMS = ("layer_norm", "native_layer_norm")


@dataclass(frozen=True)
class NormCall:
    """A call of a norm over the last axis.

    Attributes:
        affine: its affine part, of rank 0; the tensors are the model's own: read them only.
        plain: the same norm without the affine part.
        nodes: what computes it, the last one's value being the norm's.
        input: the value that it normalises.
        like: a tensor with the dtype and device of the affine part.
    """

    affine: ScaleShift
    plain: nn.Module
    nodes: tuple[Node, ...]
    input: Node
    like: Tensor


def read_norm(graph_module: GraphModule, node: Node) -> NormCall | Refusal | None:
    """The norm that the node calls, where it has an affine part; a refusal where it keeps it."""
    module = module_of(graph_module, node)
    if module is None:
        return _function(graph_module, node)
    given = module_input(node)
    if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or given is None:
        return None
    base = nn.LayerNorm if isinstance(module, nn.LayerNorm) else nn.RMSNorm
    if not module.elementwise_affine:
        return None
    if has_hooks(module):
        return Refusal(f"{node.target} has forward hooks")
    if not implements(module, base, ("forward",)):
        return Refusal(f"{type(module).__name__} overrides the forward of {base.__name__}")
    bias = module.bias if isinstance(module, nn.LayerNorm) else None
    return _norm((node,), given, module.weight, bias, module.eps, base)


def _function(graph_module: GraphModule, node: Node) -> NormCall | Refusal | None:
    """layer_norm(input, shape, weight, bias, eps), rms_norm(input, shape, weight, eps)."""
    name = operation(node)
    if name not in (*_LAYER_NORMS, "rms_norm"):
        return None
    has_bias = name in _LAYER_NORMS
    given = argument(node, 0, "input")
    names = argument(node, 2, "weight"), argument(node, 3, "bias") if has_bias else None
    weight, bias = (tensor_of(graph_module, each) for each in names)
    if not isinstance(given, Node) or names == (None, None):
        return None
    if (names[0] is not None and weight is None) or (names[1] is not None and bias is None):
        return Refusal("its affine part is computed by the graph")
    eps = argument(node, 3 + has_bias, "eps", 1e-5 if has_bias else None)
    if isinstance(eps, Node):
        return Refusal("its eps is computed by the graph")
    nodes: tuple[Node, ...] = (node,)
    if name == "native_layer_norm":  # it returns the mean and the spread, too
        # Export reads all three, whether they are used or not.
        used = [user for user in node.users if user.users]
        if [user.target is operator.getitem and user.args[1] == 0 for user in used] != [True]:
            return Refusal("its mean or its spread is read as well")
        nodes = (node, *(user for user in node.users if not user.users), *used)
    return _norm(nodes, given, weight, bias, eps, nn.LayerNorm if has_bias else nn.RMSNorm)


def _norm(
    nodes: tuple[Node, ...],
    given: Node,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    base: type[nn.LayerNorm] | type[nn.RMSNorm],
) -> NormCall | Refusal | None:
    like = bias if weight is None else weight
    assert like is not None  # as there is an affine part
    if like.dim() != 1:
        return Refusal(f"it normalises {like.dim()} axes together, a Linear maps the last alone")
    scale = torch.ones_like(like) if weight is None else weight
    shift = torch.zeros_like(like) if bias is None else bias
    options: dict[str, Any] = {"eps": eps, "elementwise_affine": False}
    plain = base(list(like.shape), **options).eval()
    return NormCall(ScaleShift(scale, shift, 0), plain, nodes, given, like)
