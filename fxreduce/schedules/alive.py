"""Calls that were captured in eval mode, made to follow the mode of the module again.

    Before: y = dropout(x, 0.1, training=False)  After: y = call(x, 0.1), on while the module trains

A trace keeps `training=self.training` as the number that it had: functional dropout, stochastic
depth and batch-norm would stay off when the captured network is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.eval_mode import parameters_of
from fxreduce.graph.nodes import argument
from fxreduce.graph.recorder import Recorder

_FLAGS = ("training", "train")
_CALLS = "fxreduce_calls"


class ModalCall(nn.Module):
    """Calls a function whose argument `flag` tells whether the module is in train mode."""

    def __init__(self, function: Callable[..., Any], place: int, flag: str) -> None:
        super().__init__()
        self.function = function
        self.place = place
        self.flag = flag

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.place < len(args):
            args = (*args[: self.place], self.training, *args[self.place + 1 :])
        else:
            kwargs = kwargs | {self.flag: self.training}
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__name__", self.function))


def alive(graph_module: GraphModule) -> GraphModule:
    """The graph with such calls following the mode; it shares its weights with the given one."""
    recorder = Recorder(graph_module, "alive")
    found = [(node, flag) for node in recorder.nodes if (flag := _flag(node)) is not None]
    for number, (node, (place, name)) in enumerate(found):
        module = ModalCall(cast(Callable[..., Any], node.target), place, name)
        why = f"{node.name} follows the mode of the module"
        recorder.substitute(node, f"{_CALLS}.{number}", module, why)
    return recorder.finish()


def _flag(node: Node) -> tuple[int, str] | None:
    """Place and name of the argument that tells the function to be as in eval, if there is one."""
    if node.op != "call_function":
        return None
    parameters = parameters_of(cast(Callable[..., Any], node.target))
    for name in _FLAGS:
        if name in parameters and argument(node, *parameters[name]) is False:
            return parameters[name][0], name
    return None
