"""Passes that are wrong on purpose, each in its own way; for models with a stem, pool and head."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.fx import GraphModule

from fxreduce.graph.recorder import Edit
from fxreduce.passes.base import PassResult

EDIT = (Edit("replaced", "head", "because"),)


@dataclass(frozen=True)
class Doubles:
    """Doubles the classifier's weight in a copy, and records it, unless it is told not to."""

    edits: tuple[Edit, ...] = EDIT
    name: ClassVar[str] = "doubles"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        graph_module = copy.deepcopy(graph_module)
        graph_module.head.weight.data.mul_(2)
        return PassResult(graph_module, self.edits)


@dataclass(frozen=True)
class Overwrites(Doubles):
    """The same in the graph that it was given, and nobody is told."""

    name: ClassVar[str] = "overwrites"

    def run(self, graph_module: GraphModule) -> PassResult:
        graph_module.head.weight.data.mul_(2)
        return PassResult(graph_module)


@dataclass(frozen=True)
class Reshapes(Doubles):
    """Lets the output lose a class."""

    name: ClassVar[str] = "reshapes"

    def run(self, graph_module: GraphModule) -> PassResult:
        graph_module = copy.deepcopy(graph_module)
        graph_module.head = nn.Linear(8, 3).eval()
        return PassResult(graph_module, self.edits)


@dataclass(frozen=True)
class Breaks(Doubles):
    """Leaves a graph that does not run."""

    name: ClassVar[str] = "breaks"

    def run(self, graph_module: GraphModule) -> PassResult:
        graph_module = copy.deepcopy(graph_module)
        graph_module.head = nn.Linear(9, 4).eval()
        return PassResult(graph_module, self.edits)


@dataclass(frozen=True)
class Malforms(Doubles):
    """Lets a node read another one that comes later."""

    name: ClassVar[str] = "malforms"

    def run(self, graph_module: GraphModule) -> PassResult:
        graph_module = copy.deepcopy(graph_module)
        nodes = {node.target: node for node in graph_module.graph.nodes}
        nodes["stem"].args = (nodes["pool"],)
        return PassResult(graph_module, self.edits)


@dataclass(frozen=True)
class Restless(Doubles):
    """Changes nothing, and says each time that it did."""

    name: ClassVar[str] = "restless"

    def run(self, graph_module: GraphModule) -> PassResult:
        return PassResult(copy.deepcopy(graph_module), self.edits)
