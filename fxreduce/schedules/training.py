"""What a training loop of one's own adds for schedules: three calls, all optional.

    def train(module):
        for epoch in range(epochs):
            schedules.begin_epoch(module)                      # rules that watch the last epoch
            for images, labels in loader:
                outputs = module(images)
                loss = F.cross_entropy(outputs, labels)
                loss = schedules.distil(module, loss, outputs, images)   # the dense model's outputs
                loss = loss + schedules.auxiliary_loss(module)           # Layer Folding's pull
                ...

They find what they need among the submodules, so that `module` may be wrapped in
DistributedDataParallel or torch.compile; where a schedule asks for none of it they change nothing.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxreduce.errors import ScheduleError


@runtime_checkable
class Auxiliary(Protocol):
    """A submodule that adds a term to the loss."""

    def auxiliary_loss(self) -> Tensor:
        """The term, a scalar."""
        ...


@runtime_checkable
class Watching(Protocol):
    """A submodule that watches the forwards of an epoch."""

    def begin_epoch(self) -> None:
        """Forget the epochs before."""
        ...


class Teacher(nn.Module):
    """Holds the dense model for distillation; its parameters are none of the module's.

    Args:
        dense: in eval mode.
        temperature, weight: see `distillation_loss` and `distil`.
    """

    def __init__(self, dense: nn.Module, temperature: float, weight: float) -> None:
        super().__init__()
        self._dense = (dense,)  # in a tuple it is no child
        self.temperature = temperature
        self.weight = weight

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The dense model's outputs, without gradient."""
        with torch.no_grad():
            return self._dense[0](*args, **kwargs)


def auxiliary_loss(module: nn.Module) -> Tensor | float:
    """What the loss of the module under training gets added: the sum over its submodules.

    Returns:
        A scalar; 0.0 where nothing is to be added.
    """
    terms = [part.auxiliary_loss() for part in module.modules() if isinstance(part, Auxiliary)]
    return torch.stack(terms).sum() if terms else 0.0


def begin_epoch(module: nn.Module) -> None:
    """Tell the module under training that an epoch begins.

    Rules that look at the forwards of the last training epoch then have those of that one alone; a
    loop that never says so gives them those of the whole training.
    """
    for part in module.modules():
        if isinstance(part, Watching):
            part.begin_epoch()


def teacher(module: nn.Module) -> Teacher | None:
    """The dense model that the module under training shall learn from, if it shall."""
    return next((part for part in module.modules() if isinstance(part, Teacher)), None)


def distil(
    module: nn.Module, loss: Tensor, outputs: Any, *inputs: Any, **named_inputs: Any
) -> Tensor:
    """The loss mixed with the distance to the dense model's outputs; without a teacher the loss.

    (1 − w)·loss + w·distillation_loss, with the weight w and the temperature of the schedule.

    Args:
        module: under training.
        loss: on the labels.
        outputs: the module's, whose first floating-point tensor holds the logits.
        inputs, named_inputs: what the module was called with.
    """
    found = teacher(module)
    if found is None:
        return loss
    expected = found(*inputs, **named_inputs)
    apart = distillation_loss(_logits(outputs), _logits(expected), found.temperature)
    return (1 - found.weight) * loss + found.weight * apart


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over samples (Hinton et al. 2015).

    Args:
        student, teacher: logits [N, classes].
        temperature: T.

    Returns:
        A scalar, in nats.
    """
    student, teacher = student / temperature, teacher.detach() / temperature
    apart = functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    )
    return temperature**2 * apart.sum(-1).mean()


def _logits(outputs: Any) -> Tensor:
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1:
            return leaf
    raise ScheduleError(
        "distillation compares logits [N, classes]; the model's output holds no such tensor"
    )
