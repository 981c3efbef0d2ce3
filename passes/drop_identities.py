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

from fxreduce.graph.nodes import argument, has_hooks, implements, module_of, operation
from fxreduce.graph.recorder import Recorder
from fxreduce.passes.base import PassResult

_DROPOUT_MODULES = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
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
        kinds = (nn.Identity,) if module.training else (nn.Identity, *_DROPOUT_MODULES)
        returns_input = any(implements(module, kind, ("forward",)) for kind in kinds)
        return returns_input and not has_hooks(module)
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "stochastic_depth":
        return argument(node, 3, "training", True) is False
    name = operation(node)
    if name is None or name.removesuffix("_") not in _DROPOUTS:
        return False
    return argument(node, 2, "training", name.startswith("dropout")) is False
