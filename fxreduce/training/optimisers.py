"""The optimiser and the schedule of its rate, as torch.optim has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from fxreduce.training.settings import TrainingSettings

_FIRST = 0.01  # of the rate, where a warm-up begins
_ONECYCLE_RISE = 0.3  # torch's default


def make_optimiser(module: nn.Module, settings: TrainingSettings) -> Optimizer:
    """The optimiser over the parameters that require gradients."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    vectors = [p for p in trained if p.dim() <= 1 and not settings.decay_vectors]
    chosen = {id(parameter) for parameter in vectors}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in chosen]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, decay = settings.rate, settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups, rate, settings.momentum, weight_decay=decay, nesterov=settings.nesterov
        )
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, rate, weight_decay=decay)


def make_schedule(
    optimiser: Optimizer, settings: TrainingSettings, steps: int
) -> lr_scheduler.LRScheduler:
    """The schedule, to be stepped after every batch, of which an epoch has `steps`."""
    total = settings.epochs * steps
    warmup = round(settings.warmup * steps)
    if settings.schedule == "onecycle":
        rise = warmup / total if warmup else _ONECYCLE_RISE
        return lr_scheduler.OneCycleLR(
            optimiser, settings.rate, total_steps=total + 1, pct_start=rise
        )
    schedule = _main(optimiser, settings, steps, total)
    if not warmup:
        return schedule
    rise_to_one = lr_scheduler.LinearLR(optimiser, _FIRST, total_iters=warmup)
    return lr_scheduler.ChainedScheduler([rise_to_one, schedule], optimiser)


def _main(
    optimiser: Optimizer, settings: TrainingSettings, steps: int, total: int
) -> lr_scheduler.LRScheduler:
    if settings.schedule == "multistep":
        milestones = [epoch * steps for epoch in settings.milestones]
        return lr_scheduler.MultiStepLR(optimiser, milestones, settings.factor)
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimiser, total)
    end = 0.0 if settings.schedule == "linear" else 1.0
    return lr_scheduler.LinearLR(optimiser, 1.0, end, total_iters=total)
