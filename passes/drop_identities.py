"""Drop calls that return their input: dropout and stochastic depth in eval, Identity.

    Before: y = dropout(conv(x)); z = bn(y)        After: z = bn(conv(x))

Restrictions: the module has no hooks. Cost: one call less. In eval these calls return the very
tensor that they are given, so that dropping them changes no aliasing either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import argument, has_hooks, module_of, operation
from fxreduce.graph.recorder import Recorder
from fxreduce.passes.base import PassResult

_DROPOUTS = {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"} | {
    f"dropout{rank}d" for rank in (1, 2, 3)
}


@dataclass(frozen=True)
class DropIdentities:
    """Drop calls that return their input."""

    name: ClassVar[str] = "drop_identities"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            given = _match(recorder.graph_module, node)
            if given is not None:
                recorder.replace(node, given, "it returns its input in eval")
        return PassResult.of(recorder)


def _match(graph_module: GraphModule, node: Node) -> Node | None:
    """The input that the node returns unchanged, or None."""
    given = argument(node, 0, "input")
    if not isinstance(given, Node) or not _is_identity(graph_module, node):
        return None
    return given


def _is_identity(graph_module: GraphModule, node: Node) -> bool:
    module = module_of(graph_module, node)
    if module is not None:
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        inactive = dropout and not module.training
        return (type(module) is nn.Identity or inactive) and not has_hooks(module)
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "stochastic_depth":
        return argument(node, 3, "training", True) is False
    name = operation(node)
    if name is None or name.removesuffix("_") not in _DROPOUTS:
        return False
    return argument(node, 2, "training", not name.startswith("dropout")) is False
