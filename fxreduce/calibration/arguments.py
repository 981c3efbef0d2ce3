"""The values of a graph's inputs on a batch, whichever way a model is called on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn
from torch.fx import GraphModule

from fxreduce.errors import CalibrationError
from fxreduce.graph.shapes import graph_inputs
from fxreduce.graph.signature import Arguments

Forward = Callable[[nn.Module, Any], Any]


class _Called(Exception):  # noqa: N818
    """Not an error: carries what a module was called with."""


class _Asked(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _Called(args, kwargs)


def call_arguments(forward: Forward, batch: Any) -> Arguments:
    """What `forward` calls the module with that it is given, on the batch.

    Raises:
        CalibrationError: `forward` does not call the module that it is given.
    """
    try:
        forward(_Asked(), batch)
    except _Called as called:
        return Arguments(*called.args)
    raise CalibrationError(
        "forward(module, batch) must call the module that it is given; it did not"
    )


def arguments(graph_module: GraphModule, forward: Forward, batch: Any) -> list[Any]:
    """The values of the graph's placeholders, in order, when `forward` calls it on the batch.

    Raises:
        CalibrationError: `forward` does not call the module that it is given.
    """
    given = call_arguments(forward, batch)
    return graph_inputs(graph_module, given.args, given.kwargs)
