"""Give operators the weights that were fitted to calibration data.

    Before: y = conv(x)                          After: y = conv'(x), of the same geometry

Not exact: conv' gives from what the reduced model feeds it what the original model had there.
Restrictions: the merged operator must have the geometry that the weights were fitted for. Cost:
none at run time; an operator without bias gets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.modules import ChannelAffine, to_module
from fxreduce.graph.nodes import module_of
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.values import VALUE, by_value
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, as_conv
from fxreduce.operators.patches import shape_of_weights, with_weights
from fxreduce.operators.ridge import too_large
from fxreduce.passes.base import PassResult


@dataclass(frozen=True)
class Refit:
    """Set fitted weights.

    Attributes:
        weights: by the name of an operator's value, [groups, O, F] as
            `fxreduce.operators.patches.weights` has them.
        reads: the name of the value that each of them is fitted to read; those that are missing
            may read any.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)
    name: ClassVar[str] = "refit"
    exact: ClassVar[bool] = False

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        named = by_value(recorder.graph_module)
        for value, matrices in self.weights.items():
            node = named.get(value)
            call = None if node is None else fittable(recorder.graph_module, node)
            if not isinstance(call, AffineCall):
                reason = "there is no such operator" if call is None else call.reason
                recorder.refuse(value, f"its fitted weights are left out: {reason}")
                continue
            if matrices.shape != shape_of_weights(as_conv(call.operator)):
                recorder.refuse(value, "its fitted weights are of an operator merged otherwise")
                continue
            # An operator of the same shape may stand for a longer chain, or a shorter one.
            name = call.input.meta.get(VALUE, "")
            if self.reads.get(value, name) != name:
                recorder.refuse(value, "its fitted weights are of an operator merged otherwise")
                continue
            module = to_module(refitted(call.operator, matrices), call.like)
            why = "its weights are fitted to calibration data"
            recorder.merge((call.node,), call.input, module, why)
        return PassResult.of(recorder)


def refitted(operator: Operator, matrices: Tensor) -> Operator:
    """The operator with fitted weights, [groups, O, F]."""
    given = as_conv(operator)
    fitted = with_weights(given, matrices.to(given.weight.device))
    if isinstance(operator, Conv) or fitted.bias is None:
        return fitted
    return ScaleShift(fitted.weight.flatten(), fitted.bias, operator.rank)


def fittable(graph_module: GraphModule, node: Node) -> AffineCall | Refusal | None:
    """The affine operator with weights that the node calls; a refusal where it cannot be fitted."""
    call = read_affine(graph_module, node)
    if not isinstance(call, AffineCall) or call.like is None:
        return call if isinstance(call, Refusal) else None
    operator = call.operator
    if isinstance(operator, ScaleShift):
        # A batch-norm that stayed, or a constant, is left to its neighbours.
        return call if isinstance(module_of(graph_module, node), ChannelAffine) else None
    if operator.transposed:
        return Refusal("a transposed convolution cannot be fitted")
    return too_large(operator) or call
