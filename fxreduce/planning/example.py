"""A batch to learn shapes from and to check merges on, and how it outlives the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.calibration.batches import DefaultForward
from fxreduce.errors import CaptureError
from fxreduce.graph.shapes import call, copied, propagate_shapes
from fxreduce.graph.signature import Arguments

Forward = Callable[[nn.Module, Any], Any]
# Merges are checked in float64; a few samples show a wrong one as well as many.
SAMPLES = 4


@dataclass(frozen=True)
class Example:
    """A batch, and how a module is called on it."""

    batch: Any
    forward: Forward

    def run(self, module: nn.Module) -> Any:
        return self.forward(module, copied(self.batch))


@dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of an input, and between which numbers it lies if they are integers."""

    shape: tuple[int, ...]
    dtype: str
    low: int = 0
    high: int = 0

    def random(self, generator: torch.Generator) -> Tensor:
        """Standard normal numbers, or integers as the example's, which every embedding has."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return torch.randint(self.low, self.high + 1, self.shape, generator=generator).to(dtype)


@dataclass(frozen=True)
class InputSpec:
    """The inputs of a model: positional ones and those by name."""

    args: tuple[TensorSpec, ...] = ()
    kwargs: Mapping[str, TensorSpec] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Example) -> InputSpec | None:
        """The spec of a batch; None where a forward of the user's own takes it apart."""
        if isinstance(example.forward, DefaultForward):
            args, kwargs = example.forward.arguments(example.batch)
        elif example.forward is call:
            given = Arguments.of(example.batch)
            args, kwargs = given.args, given.kwargs
        elif example.forward is _call:
            args, kwargs = example.batch
        else:
            return None
        if not all(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            return None
        return cls(
            tuple(_spec(value) for value in args),
            {name: _spec(value) for name, value in kwargs.items()},
        )

    def example(self, device: torch.device | None) -> Example:
        """Random inputs of this spec, always the same."""
        generator = torch.Generator().manual_seed(0)
        args = tuple(spec.random(generator).to(device) for spec in self.args)
        kwargs = {name: spec.random(generator).to(device) for name, spec in self.kwargs.items()}
        return Example((args, kwargs), _call)


def learn_shapes(graph_module: GraphModule, batch: Any, forward: Forward) -> Example:
    """Write the shape of every value on the graph; returns the part of the batch that served.

    A few samples serve, unless the graph takes the batch's own size alone.

    Raises:
        CaptureError: the graph does not run on the batch.
    """
    if isinstance(forward, DefaultForward):
        small = Example(head(batch), forward)
        try:
            propagate_shapes(graph_module, small.run)
        except CaptureError:
            pass  # the graph is bound to its batch size
        else:
            return small
    whole = Example(batch, forward)
    propagate_shapes(graph_module, whole.run)
    return whole


def head(batch: Any) -> Any:
    """A few samples of a batch."""
    return pytree.tree_map_only(Tensor, lambda t: t[:SAMPLES] if t.dim() else t, batch)


def _spec(value: Tensor) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_floating_point() or not value.numel():
        return TensorSpec(tuple(value.shape), dtype)
    return TensorSpec(tuple(value.shape), dtype, int(value.min()), int(value.max()))


def _call(module: nn.Module, arguments: Any) -> Any:
    args, kwargs = arguments
    return module(*args, **kwargs)
