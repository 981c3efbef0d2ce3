"""Batch-norms as `ExportedProgram.run_decompositions` and some devices leave them, put together.

They return statistics for training, too, which nothing reads in eval.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import argument, operation


@dataclass(frozen=True)
class _Form:
    """Where an operator has its options; before them are input, weight, bias, mean and variance.

    Attributes:
        training: the place of the flag; None where the operator is for eval alone.
        momentum, eps: places and names; cuDNN has names of its own.
    """

    training: int | None
    momentum: tuple[int, str] = (6, "momentum")
    eps: tuple[int, str] = (7, "eps")


_EVAL = _Form(None, (5, "momentum"), (6, "eps"))
_CUDNN = _Form(5, (6, "exponential_average_factor"), (7, "epsilon"))
_FORMS = {
    "_native_batch_norm_legit_no_training": _EVAL,
    "_batch_norm_no_update": _EVAL,
    "native_batch_norm": _Form(5),
    "_native_batch_norm_legit": _Form(5),
    "cudnn_batch_norm": _CUDNN,
    "miopen_batch_norm": _CUDNN,
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")


def compose_batch_norms(graph_module: GraphModule) -> None:
    """Let one `aten.batch_norm` take the place of each such call and of what reads its output."""
    graph, changed = graph_module.graph, False
    for node in list(graph.nodes):
        form = _FORMS.get(operation(node) or "")
        if form is None or not _is_composed(node, form):
            continue
        with graph.inserting_before(node):
            call = graph.call_function(torch.ops.aten.batch_norm.default, _arguments(node, form))
        for read in list(node.users):
            if read.args[1] == 0:
                call.meta = dict(read.meta)
                read.replace_all_uses_with(call)
            graph.erase_node(read)
        graph.erase_node(node)
        changed = True
    if changed:
        graph.lint()
        graph_module.recompile()


def _is_composed(node: Node, form: _Form) -> bool:
    """Whether it works as in eval, and what it returns besides the output is not read."""
    if form.training is not None and argument(node, form.training, "training") is not False:
        return False
    return all(
        user.target is operator.getitem and (user.args[1] == 0 or not user.users)
        for user in node.users
    )


def _arguments(node: Node, form: _Form) -> tuple[Any, ...]:
    """The arguments of `aten.batch_norm`, whose last one is about cuDNN."""
    tensors = (argument(node, place, name) for place, name in enumerate(_TENSORS, 1))
    options = (argument(node, *form.momentum), argument(node, *form.eps))
    return (argument(node, 0, "input"), *tensors, False, *options, True)
