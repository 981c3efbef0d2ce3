"""Products with a constant matrix, read as a Linear or as a pointwise convolution.

addmm(b, x, W) = x W + b,     matmul(x, W) = x W,     einsum("bchw,dc->bdhw", x, W) = conv1×1(x; W)
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import register_operator
from fxreduce.graph.nodes import are_constant, argument, tensor_of
from fxreduce.operators.affine import Conv, Operator, Refusal, nonzero

Read = tuple[Operator, Node] | Refusal | None
_SPATIAL = 3  # the most axes that a convolution has behind its channels


def _addmm(graph_module: GraphModule, node: Node) -> Read:
    bias, given, matrix = (argument(node, i, n) for i, n in enumerate(("input", "mat1", "mat2")))
    weight, shift = tensor_of(graph_module, matrix), tensor_of(graph_module, bias)
    if weight is None or shift is None or not isinstance(given, Node):
        return None
    if (node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)) != (1, 1):
        return Refusal("it weights its product and its sum")
    if shift.dim() != 1 or len(shift) != weight.shape[1]:
        return Refusal(f"it adds a constant of shape {tuple(shift.shape)}")
    return Conv(weight.t(), nonzero(shift.detach())), given


def _matmul(graph_module: GraphModule, node: Node) -> Read:
    given = argument(node, 0, "input")
    weight = tensor_of(graph_module, argument(node, 1, "other", node.kwargs.get("mat2")))
    if weight is None or weight.dim() != 2 or not isinstance(given, Node):
        return None
    return None if are_constant(graph_module, given) else (Conv(weight.t()), given)


def _einsum(graph_module: GraphModule, node: Node) -> Read:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if len(operands) != 2 or not isinstance(equation, str):
        return None
    sides, _, result = equation.replace(" ", "").partition("->")
    pairs = list(zip(sides.split(","), operands, strict=True))
    for (names, given), (of_weight, weight) in (pairs, reversed(pairs)):
        matrix = tensor_of(graph_module, weight)
        constant = are_constant(graph_module, given)
        if matrix is not None and isinstance(given, Node) and not constant:
            operator = _product(names, of_weight, result, matrix)
            return None if operator is None else (operator, given)
    return None


def _product(names: str, of_weight: str, result: str, matrix: Tensor) -> Operator | None:
    """The operator that maps the axis of `names` which `result` lacks, where all others stay."""
    if (
        (len(of_weight), len(set(of_weight))) != (2, 2)
        or matrix.dim() != 2
        or names.count(".") not in (0, 3)
    ):
        return None
    first, second = tuple(of_weight)
    for contracted, made in ((first, second), (second, first)):
        if names.count(contracted) != 1 or made in names:
            continue
        if result != names.replace(contracted, made):
            continue
        weight = matrix if of_weight == made + contracted else matrix.t()
        rank = len(names) - 1 - names.index(contracted)
        image = "." not in names and rank <= _SPATIAL and names.index(contracted) == 1
        if rank == 0 or image:
            return Conv(weight.reshape(*weight.shape, *(1,) * rank))
    return None


register_operator(_addmm, operations=("addmm",))
register_operator(_matmul, operations=("matmul", "mm"))
register_operator(_einsum, operations=("einsum",))
