"""Reading a node of any dialect as a batch-norm that normalises by its running statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.graph.layout import trailing_axes
from fxreduce.graph.nodes import (
    are_constant,
    argument,
    implements,
    module_input,
    module_of,
    operation,
    tensor_of,
)
from fxreduce.operators.affine import Refusal, ScaleShift

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class BatchNormCall:
    """A call of a batch-norm; the tensors are the model's own: read them only.

    Attributes:
        input: what it normalises, along axis 1.
        mean, variance: [C], its running statistics.
        weight, bias: [C], or None.
        eps: what is added to the variance.
        rank: how many axes are right of axis 1, where that is known.
    """

    input: Node
    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    rank: int | None

    def operator(self) -> tuple[ScaleShift, Node] | Refusal:
        """The batch-norm as a scale and a shift, with its input."""
        if self.rank is None:
            return Refusal(
                "batch-norm normalises axis 1, and nothing tells how many axes its input has; "
                "capture the model with example inputs"
            )
        scale = (self.variance.detach().double() + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.detach()
        shift = -self.mean.detach() * scale
        if self.bias is not None:
            shift = shift + self.bias.detach()
        return ScaleShift(scale, shift, self.rank), self.input


def read_batch_norm(graph_module: GraphModule, node: Node) -> BatchNormCall | Refusal | None:
    """The batch-norm that the node calls; a refusal where it cannot be read as a constant map."""
    module = module_of(graph_module, node)
    if module is not None:
        return _module(graph_module, node, module)
    return _function(graph_module, node) if operation(node) == "batch_norm" else None


def _module(
    graph_module: GraphModule, node: Node, module: nn.Module
) -> BatchNormCall | Refusal | None:
    given = module_input(node)
    if given is None or not isinstance(module, BATCH_NORMS):
        return None
    if not any(implements(module, base, ("forward",)) for base in BATCH_NORMS):
        return Refusal(f"{type(module).__name__} overrides the forward of a batch-norm")
    mean, variance = module.running_mean, module.running_var
    if module.training or mean is None or variance is None:
        return Refusal("the batch-norm normalises by the batch's own statistics")
    rank = _rank(graph_module, module, given)
    return BatchNormCall(given, mean, variance, module.weight, module.bias, module.eps, rank)


def _rank(graph_module: GraphModule, module: nn.Module, given: Node) -> int | None:
    """Axes right of axis 1: a batch-norm refuses inputs of other ranks than its own."""
    for cls, rank in ((nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)):
        if implements(module, cls, ("_check_input_dim",)):
            return rank
    seen = trailing_axes(graph_module, given)
    # A layer of higher rank before a BatchNorm1d must work on images without a batch axis.
    return None if seen is not None and seen > 1 and isinstance(module, nn.BatchNorm1d) else seen


def _function(graph_module: GraphModule, node: Node) -> BatchNormCall | Refusal | None:
    """F.batch_norm(input, mean, var, weight, bias, training, momentum, eps); ATen: weight first."""
    aten = not hasattr(node.target, "__code__")
    first = ("weight", "bias", "running_mean", "running_var")
    order = first if aten else (*first[2:], *first[:2])
    given = argument(node, 0, "input")
    values = {name: argument(node, place + 1, name) for place, name in enumerate(order)}
    if not isinstance(given, Node) or not are_constant(graph_module, *values.values()):
        return None
    tensors = {name: tensor_of(graph_module, value) for name, value in values.items()}
    mean, variance = tensors["running_mean"], tensors["running_var"]
    if argument(node, 5, "training", False) or mean is None or variance is None:
        return Refusal("the batch-norm normalises by the batch's own statistics")
    eps = argument(node, 7, "eps", 1e-5)
    if isinstance(eps, Node):
        return Refusal("its eps is computed by the graph")
    rank = trailing_axes(graph_module, given)
    return BatchNormCall(given, mean, variance, tensors["weight"], tensors["bias"], eps, rank)
