"""Running a graph once to learn the shape of every value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxreduce.errors import CaptureError, first_line
from fxreduce.graph.nodes import SHAPE
from fxreduce.graph.run import NodeByNode
from fxreduce.graph.signature import Arguments
from fxreduce.graph.state import kept_state


def call(module: nn.Module, inputs: Any) -> Any:
    """The module's output on a copy of example inputs, as a model may overwrite them."""
    given = Arguments.of(copied(inputs))
    return module(*given.args, **given.kwargs)


def copied(inputs: Any, dtype: torch.dtype | None = None) -> Any:
    """The inputs, copied, as a model may overwrite them; those in floating point in `dtype`."""

    def copy(t: torch.Tensor) -> torch.Tensor:
        return t.to(dtype if dtype and t.is_floating_point() else t.dtype, copy=True)

    if isinstance(inputs, Arguments):
        return inputs.map(copy)
    return pytree.tree_map_only(torch.Tensor, copy, inputs)


class _Shapes(NodeByNode):
    """Runs a graph once and writes on each node the shape of its value."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta[SHAPE] = tuple(value.shape)
        return value


class _Interpreted(nn.Module):
    """A graph module that is called as such and runs node by node."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.called = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        graph = self.graph_module.graph
        values = graph_inputs(self.graph_module, args, kwargs)
        result = _Shapes(self.graph_module).run(*values, enable_io_processing=False)
        return graph.process_outputs(result)


def graph_inputs(
    graph_module: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    """The values of the placeholders, in order, for a call with `args` and `kwargs`."""
    graph = graph_module.graph
    if type(graph._codegen) is not torch.fx.graph.CodeGen:
        leaves: list[Any] = pytree.arg_tree_leaves(*args, **kwargs)
        return leaves
    inputs = graph.find_nodes(op="placeholder")[len(args) :]
    given = {str(node.target): node.args[0] for node in inputs if node.args} | kwargs
    return [*args, *(given[name] for name in map(str, (n.target for n in inputs)) if name in given)]


def propagate_shapes(graph_module: GraphModule, run: Callable[[nn.Module], Any]) -> None:
    """Write on every node the shape of its value, by one run without gradients.

    Args:
        run: calls the module that it is given once, on example inputs.

    Raises:
        CaptureError: the graph does not run on these inputs, or `run` does not call it.
    """
    interpreted = _Interpreted(graph_module)
    try:
        with torch.no_grad(), kept_state(graph_module):
            run(interpreted)
    except Exception as error:  # whatever the graph's own operators raise
        raise CaptureError(
            f"the captured graph does not run on the example inputs: {first_line(error)}"
        ) from error
    if not interpreted.called:
        raise CaptureError(
            "forward(module, batch) must call the module that it is given; it did not"
        )
