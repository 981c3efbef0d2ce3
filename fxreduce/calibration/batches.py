"""Running a model over a calibration loader, batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.errors import CalibrationError
from fxreduce.progress import track

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Calibration:
    """Where calibration data come from and how a model is called on a batch.

    Attributes:
        loader: an iterable of batches that can be iterated again and again.
        forward: calls the model on a batch.
        device: where batches are moved to, or None to leave them.
        progress: see `fxreduce.progress.track`.
        skip: every how many batches one is left out, held out for checks; 0 leaves out none.
    """

    loader: Iterable[Any]
    forward: Forward
    device: torch.device | None = None
    progress: bool | None = None
    skip: int = 0

    @classmethod
    def of(
        cls,
        graph_module: GraphModule,
        loader: Iterable[Any],
        forward: Forward | None,
        progress: bool | None,
    ) -> Calibration:
        """The calibration of a graph module. A loader that can be read only once is kept whole."""
        try:
            iterator = iter(loader)
        except TypeError as error:
            raise CalibrationError(
                "the calibration loader must be an iterable of batches; seen: "
                f"{type(loader).__name__}"
            ) from error
        kept = list(iterator) if iterator is loader else loader
        tensor = next(iter(graph_module.parameters()), None)
        device = None if tensor is None else tensor.device
        return cls(kept, forward or DefaultForward.of(graph_module), device, progress)

    def batches(self, description: str) -> Iterator[tuple[int, Any]]:
        """The batches to measure on, with their numbers, moved to the device."""
        length = len(self.loader) if isinstance(self.loader, Sized) else None
        for number, batch in enumerate(
            track(self.loader, description, total=length, progress=self.progress)
        ):
            if not (self.skip and number % self.skip == self.skip - 1):
                yield number, to_device(batch, self.device)

    def count(self) -> int:
        """How many batches the loader has."""
        if isinstance(self.loader, Sized):
            return len(self.loader)
        return sum(1 for _ in self.loader)

    def first(self) -> Any:
        """The first batch, for shapes and checks."""
        for _, batch in replace(self, progress=False, skip=0).batches("first batch"):
            return batch
        raise CalibrationError(
            "calibration needs at least one batch; the loader yielded none. Pass a loader, a list "
            "of batches or any iterable of them that is not exhausted"
        )

    def held_out(self) -> list[Any]:
        """The batches that `skip` leaves out of measuring."""
        if not self.skip:
            return []
        return [
            to_device(batch, self.device)
            for number, batch in enumerate(self.loader)
            if number % self.skip == self.skip - 1
        ]

    def run(self, module: nn.Module, number: int, batch: Any) -> Any:
        """The module's output on a batch.

        Raises:
            CalibrationError: the module does not run on the batch; batch and shapes are named.
        """
        try:
            with torch.no_grad():
                return self.forward(module, batch)
        except CalibrationError:
            raise
        except Exception as error:  # whatever the model's own operators raise
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CalibrationError(
                f"the model does not run on batch {number} of shapes {describe(batch)}: "
                f"{first_line}. Check the batch, or pass forward=(module, batch) -> output"
            ) from error


@dataclass(frozen=True)
class DefaultForward:
    """Calls a graph module on (Tensor | (Tensor, ...) | {name: Tensor}); labels are left out.

    Of a tuple the model gets as many items as it has inputs without default, of a dictionary those
    whose names are inputs.
    """

    names: tuple[str, ...]
    required: int

    @classmethod
    def of(cls, graph_module: GraphModule) -> DefaultForward:
        inputs = graph_module.graph.find_nodes(op="placeholder")
        required = sum(1 for node in inputs if not node.args)
        return cls(tuple(str(node.target).lstrip("*") for node in inputs), max(required, 1))

    def __call__(self, module: nn.Module, batch: Any) -> Any:
        args, kwargs = self.arguments(batch)
        return module(*args, **kwargs)

    def arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments that the batch holds for the model."""
        if hasattr(batch, "keys"):
            known = {name: batch[name] for name in self.names if name in batch}
            if not known:
                raise CalibrationError(
                    f"none of the batch's names ({', '.join(map(str, batch.keys()))}) is an "
                    f"input of the model ({', '.join(self.names)}); pass forward=(module, batch) "
                    "-> output"
                )
            return (), known
        if isinstance(batch, (tuple, list)):
            if len(batch) < self.required:
                raise CalibrationError(
                    f"the model takes {self.required} inputs ({', '.join(self.names)}), the batch "
                    f"has {len(batch)}; pass forward=(module, batch) -> output"
                )
            return tuple(batch[: self.required]), {}
        return (batch,), {}


def to_device(batch: Any, device: torch.device | None) -> Any:
    """The batch with its tensors on the device."""
    if device is None:
        return batch
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def describe(batch: Any) -> str:
    """The shapes of a batch's tensors, for messages."""
    shapes = [
        str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)
    ]
    return ", ".join(shapes) or f"none (a {type(batch).__name__})"
