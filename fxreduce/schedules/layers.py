"""Give functional convolutions and linears a module, as pruning and refitting need one.

    Before: y = linear(x, net.mix.weight, net.mix.bias)    After: y = net.mix(x)

Exact: the module has the very parameters, under the names that they had. Restrictions: nothing else
reads them. torch.export writes all layers so. Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import argument, operation, tensor_of
from fxreduce.graph.recorder import Recorder
from fxreduce.operators.affine import Conv
from fxreduce.passes.base import PassResult

_CALLS = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class LayersAsModules:
    """Let modules take the place of functional convolutions and linears."""

    name: ClassVar[str] = "layers_as_modules"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            if operation(node) not in _CALLS or not _owns_weights(recorder.graph_module, node):
                continue
            call = read_affine(recorder.graph_module, node)
            if isinstance(call, AffineCall) and isinstance(call.operator, Conv):
                weight, bias = (
                    tensor_of(recorder.graph_module, argument(node, place, name))
                    for place, name in ((1, "weight"), (2, "bias"))
                )
                module: Any = to_module(call.operator, weight)
                module.weight, module.bias = weight, bias
                recorder.merge((node,), call.input, module, "a module holds its weights")
        return PassResult.of(recorder)


def _owns_weights(graph_module: GraphModule, node: Node) -> bool:
    """Whether the call has parameters that nothing else reads."""
    given = (argument(node, 1, "weight"), argument(node, 2, "bias"))
    return all(
        each is None
        or (isinstance(tensor_of(graph_module, each), nn.Parameter) and set(each.users) == {node})
        for each in given
    )
