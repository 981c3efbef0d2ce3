"""Counting the affine operators of a graph and their multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch.fx import GraphModule

from fxreduce.graph.affine import AffineCall, is_weightless, read_affine
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.nodes import module_of, shape_of
from fxreduce.operators.affine import Conv, Refusal, ScaleShift
from fxreduce.operators.cost import multiply_adds
from fxreduce.operators.setting import Setting


@dataclass(frozen=True)
class Count:
    """Affine operators, and the multiply-adds of the convolutions and Linears among them.

    `multiply_adds` is for a batch of one, None where a shape is not known. Batch-norm and the like
    count as operators; their one multiply-add for each element is left out, as is usual. Poolings
    and what else has no weights do not count.
    """

    operators: int
    multiply_adds: int | None


def count_affine(graph_module: GraphModule) -> Count:
    """Count what `read_affine` reads in a graph whose nodes know their shapes."""
    operators, total = 0, 0
    known = True
    for node in graph_module.graph.nodes:
        if is_weightless(graph_module, node):
            continue
        call = read_affine(graph_module, node)
        operators += isinstance(call, (AffineCall, Refusal))
        if isinstance(module := module_of(graph_module, node), BorderCorrectedConv):
            counted = _of_one_sample(module, shape_of(node.all_input_nodes[0]))
            known &= counted is not None
            total += counted or 0
        if not isinstance(call, AffineCall) or isinstance(call.operator, ScaleShift):
            continue
        counted = _multiply_adds(call, call.operator)
        known &= counted is not None
        total += counted or 0
    return Count(operators, total if known else None)


def _of_one_sample(module: BorderCorrectedConv, shape: tuple[int, ...] | None) -> int | None:
    if shape is None:
        return None
    setting = Setting((1, *shape[-len(module.windows) - 1 :]))
    return sum(multiply_adds(*call) for call in module.calls(setting))


def _multiply_adds(call: AffineCall, operator: Conv) -> int | None:
    shape = shape_of(call.input if operator.transposed else call.node)
    if shape is None:
        return None
    spatial = shape[2:] if operator.rank else shape[1:-1]
    positions = prod(spatial)
    border = 0 if operator.border is None else operator.border.numel()
    return positions * (operator.weight.numel() + border)
