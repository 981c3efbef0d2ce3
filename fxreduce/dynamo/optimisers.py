"""Counting what fused optimisers write: torch does not count it."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


@cache  # once in a process
def count_fused_steps() -> None:
    """From now on let every step of a fused optimiser count as a write to its parameters."""
    register_optimizer_step_post_hook(_count)


def _count(optimiser: Optimizer, _args: Any, _kwargs: Any) -> None:
    for group in optimiser.param_groups:
        if group.get("fused"):
            increment_version([each for each in group["params"] if each.grad is not None])
