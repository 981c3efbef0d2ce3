"""A graph that is compiled when it is first called, outside of torch.compile's own compilation."""

from __future__ import annotations

from copy import deepcopy
from threading import Lock
from types import FunctionType
from typing import Any

import torch
from torch.fx import GraphModule

from fxreduce.dynamo.inner import Inner, Run


class Late:
    """Compiles a graph at its first call, for the shapes of that call, and for others in turn."""

    def __init__(self, graph_module: GraphModule, inner: Inner) -> None:
        """`graph_module` may not read what torch.compile noted in its own, see `plain`."""
        self._graph_module = graph_module
        self._inner = inner
        self._run: Run | None = None
        self._lock = Lock()

    def __call__(self, *args: Any) -> Any:
        if self._run is None:
            with self._lock:
                self._run = torch.compile(
                    _function(self._graph_module), backend=self._inner.compile
                )
        return self._run(*args)


def plain(graph_module: GraphModule) -> GraphModule:
    """A copy of the graph without what torch.compile noted in it, example values among that."""
    graph = deepcopy(graph_module.graph)
    for node in graph.nodes:
        node.meta.clear()
    return GraphModule(graph_module, graph)


def _function(graph_module: GraphModule) -> Run:
    """A function that calls the graph: torch.compile does not compile graph modules of its own.

    It counts compilations by code, and gives up after a few, so that each graph has its own.
    """

    def call(*given: Any) -> Any:
        return graph_module(*given)

    code = call.__code__.replace()
    return FunctionType(code, call.__globals__, closure=call.__closure__)
