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
from fxreduce.graph.shapes import call, copied, propagate_shapes, unpack

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
    """The shape and dtype of an input."""

    shape: tuple[int, ...]
    dtype: str

    def random(self, generator: torch.Generator) -> Tensor:
        """Standard normal numbers; zeros for integers, which every embedding has."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return torch.zeros(self.shape, dtype=dtype)


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
        elif example.forward in (call, _call):
            args, kwargs = unpack(example.batch) if example.forward is call else example.batch
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
        small = Example(_head(batch), forward)
        try:
            propagate_shapes(graph_module, small.run)
        except CaptureError:
            pass  # the graph is bound to its batch size
        else:
            return small
    whole = Example(batch, forward)
    propagate_shapes(graph_module, whole.run)
    return whole


def _head(batch: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t[:SAMPLES] if t.dim() else t, batch)


def _spec(value: Tensor) -> TensorSpec:
    return TensorSpec(tuple(value.shape), str(value.dtype).removeprefix("torch."))


def _call(module: nn.Module, arguments: Any) -> Any:
    args, kwargs = arguments
    return module(*args, **kwargs)
