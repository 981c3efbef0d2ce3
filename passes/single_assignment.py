"""Give every state of a tensor a name of its own: who reads an overwritten one reads the result.

    Before: y = conv(x); z = relu_(y); w = y + z        After: y = conv(x); z = relu_(y); w = z + z

Behind an in-place call its argument and its result are the same tensor, so the values stay what
they are, and later passes may look at users alone. The call stays in place: speed and memory too.
Restrictions: none. Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxreduce.graph.nodes import is_inplace, write_target
from fxreduce.graph.recorder import Recorder
from fxreduce.passes.base import PassResult


@dataclass(frozen=True)
class SingleAssignment:
    """Let every reader of a tensor that was overwritten in place read the result instead."""

    name: ClassVar[str] = "single_assignment"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        nodes = recorder.nodes
        place = {node: index for index, node in enumerate(nodes)}
        for node in nodes:
            target = write_target(recorder.graph_module, node)
            if target is not None and is_inplace(recorder.graph_module, node):
                later = [user for user in target.users if place[user] > place[node]]
                recorder.reroute(target, node, later, f"{node.name} has overwritten it")
        return PassResult.of(recorder)
