"""How far rounding merged weights to a coarser dtype can move what a graph computes.

Each merged weight w becomes w (1 + d) + e, |d| at most half of the dtype's unit and |e| half of its
smallest number. What that moves an operator's output by is at most what the absolute weights make
of the absolute input, times |d|, and the same with |e| in the place of each weight; what its input
has been moved by grows by the absolute weights. So a bound runs along the graph beside the values:
linear structure carries it as it carries values, and rectifiers by their steepest slope.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.nodes import module_of
from fxreduce.graph.norms import read_norm
from fxreduce.graph.rectifiers import read_rectifier
from fxreduce.operators.affine import Operator, ScaleShift, apply, map_tensors
from fxreduce.passes.base import PassResult

_STEEPEST = 1.5  # slope of any rectifier in the tests, which is hard-swish's


def bound(result: PassResult, dtype: torch.dtype, x: Tensor) -> Any:
    """How far each output may be off, where the weights that the pass made are rounded to a dtype.

    Args:
        result: of a pass over a model of that dtype.
        x: the input, in float64; the graph is run on a float64 copy.
    """
    made = {edit.node for edit in result.edits if edit.action == "created"}
    run = _Bounds(deepcopy(result.graph_module).double(), made, dtype)
    with torch.no_grad():
        run.run(x)
    return run.last


class _Bounds(Interpreter):
    """Runs a graph, and a bound of the rounding beside each of its values."""

    def __init__(
        self, graph_module: GraphModule, made: Collection[str], dtype: torch.dtype
    ) -> None:
        super().__init__(graph_module)
        info = torch.finfo(dtype)
        half = info.eps / 2
        # The share is of the unrounded weight, and what is at hand is the rounded one.
        self.share = 0.0 if dtype == torch.float64 else half / (1 - half)
        self.least = info.tiny * half
        self.made = made
        self.bounds: dict[Node, Any] = {}
        self.last: Any = None

    def run_node(self, n: Node) -> Any:
        call = read_affine(self.module, n)
        source = call.input if isinstance(call, AffineCall) else n.all_input_nodes[:1]
        source = source if isinstance(source, Node) else next(iter(source), None)
        given = self.env.get(source)
        given = given.clone() if isinstance(given, Tensor) else given
        value = super().run_node(n)
        self.bounds[n] = self.last = self._bound(n, call, given, value)
        return value

    def _bound(self, node: Node, call: Any, given: Any, value: Any) -> Any:
        if node.op in ("placeholder", "get_attr"):
            return torch.zeros_like(value)
        fresh = any(each.name in self.made for each in (node, *_constants(node)))
        if isinstance(call, AffineCall):
            before = self.bounds[call.input]
            after = apply(_without_shift(map_tensors(call.operator, Tensor.abs)), before)
            return after + apply(self._off(call.operator), given.abs() + before) * fresh
        module = module_of(self.module, node)
        if isinstance(module, BorderCorrectedConv):
            return self._off_inside(module)(given.abs())
        if node.op == "output":
            return map_arg(node.args[0], lambda each: self.bounds[each])
        if read_rectifier(self.module, node) is not None:
            return _STEEPEST * self.bounds[node.all_input_nodes[0]]
        if read_norm(self.module, node) is not None:
            assert not any(bool(self.bounds[each].any()) for each in node.all_input_nodes)
            return torch.zeros_like(value)
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: self.bounds[each].clone())
        return getattr(self, node.op)(node.target, args, kwargs)

    def _off(self, operator: Operator) -> Operator:
        """The operator with the largest error of each weight in its place."""
        return map_tensors(operator, lambda tensor: tensor.abs() * self.share + self.least)

    def _off_inside(self, module: BorderCorrectedConv) -> nn.Module:
        """The module with the errors of its merged weights; those of the border are the model's."""
        off = deepcopy(module)
        for name, parameter in off.named_parameters():
            merged = name.startswith("inside.")
            errors = parameter.abs() * self.share + self.least
            parameter.copy_(errors * merged)
        return off


def _constants(node: Node) -> list[Node]:
    return [each for each in node.all_input_nodes if each.op == "get_attr"]


def _without_shift(operator: Operator) -> Operator:
    if isinstance(operator, ScaleShift):
        return replace(operator, shift=torch.zeros_like(operator.shift))
    return replace(operator, bias=None, border=None)
