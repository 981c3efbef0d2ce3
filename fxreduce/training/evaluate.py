"""The figures that judge classifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxreduce.calibration.ranks import rank
from fxreduce.data.dataset import Inputs
from fxreduce.errors import UnsupportedError
from fxreduce.training.distributed import summed, world_size

LabelledBatches = Iterable[tuple[Inputs, Tensor]]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Accuracy:
    """The fraction of samples whose largest logit is their label; larger is better.

    Modules are judged in eval mode and left in the mode that they had. Under torch.distributed the
    ranks divide the batches among them, and each gets the same figure.

    Attributes:
        batches: The samples with their labels.
        device: Where the modules are.
    """

    batches: LabelledBatches
    device: torch.device = _CPU

    def __call__(self, module: nn.Module) -> float:
        def hits(found: Tensor, labels: Tensor) -> Tensor:
            return found.argmax(1) == labels

        return _mean(hits, module, self.batches, self.device)


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy of the labels in nats; smaller is better. See `Accuracy`."""

    batches: LabelledBatches
    device: torch.device = _CPU

    def __call__(self, module: nn.Module) -> float:
        def losses(found: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(found, labels, reduction="none")

        return _mean(losses, module, self.batches, self.device)


@torch.no_grad()
def agreement(
    before: nn.Module, after: nn.Module, batches: LabelledBatches, device: torch.device | str
) -> float | None:
    """The fraction of predictions that two models on `device` share; labels are not needed.

    None where the first output is no tensor of scores `[N, classes, ...]`.
    """
    same = predictions = 0
    for inputs, _ in batches:
        moved = to_device(inputs, torch.device(device))
        scores = [_scores(call(module, moved)) for module in (before, after)]
        if scores[0] is None or scores[1] is None:
            return None
        found = scores[0].argmax(1) == scores[1].argmax(1)
        same += int(found.sum())
        predictions += found.numel()
    return same / predictions


def call(module: nn.Module, inputs: Inputs) -> Any:
    """The module's output: a dictionary of inputs goes to it by name."""
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def logits(module: nn.Module, inputs: Inputs) -> Tensor:
    """The logits `[N, classes]`: the output, or the first tensor in it (Inception, transformers).

    Raises:
        UnsupportedError: The output is of another shape.
    """
    output = call(module, inputs)
    named = getattr(output, "logits", None)  # a loss may stand before them
    found = named if isinstance(named, Tensor) else _first(output)
    if found is None or found.dim() != 2:
        seen = "no tensor" if found is None else f"a tensor of shape {list(found.shape)}"
        raise UnsupportedError(
            f"a classifier returns logits [N, classes]; {type(module).__name__} returns {seen}"
        )
    return found


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on the device."""
    if isinstance(inputs, dict):
        return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
    return inputs.to(device, non_blocking=True)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, and afterwards each of its parts in the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def _mean(
    figures: Callable[[Tensor, Tensor], Tensor],
    module: nn.Module,
    batches: LabelledBatches,
    device: torch.device,
) -> float:
    """The mean over all samples of what `figures` has for each from its logits and its label."""
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with evaluating(module):
        for inputs, labels in islice(iter(batches), rank(), None, world_size()):
            found = figures(logits(module, to_device(inputs, device)), labels.to(device))
            total += torch.stack((found.sum(dtype=torch.float64), total.new_tensor(len(labels))))
    total = summed(total)
    return float(total[0] / total[1])


def _first(output: object) -> Tensor | None:
    return next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)


def _scores(output: object) -> Tensor | None:
    first = _first(output)
    return None if first is None or first.dim() < 2 or first.shape[1] < 2 else first
