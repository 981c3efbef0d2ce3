"""Latencies that can be compared: taken in turns, so that a noisy moment falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn


@torch.no_grad()
def median_latencies(
    modules: Sequence[nn.Module], inputs: Tensor, *, rounds: int, warm_up: int = 3
) -> list[float]:
    """The median seconds of one forward of each module, over `rounds` that take all in turn.

    The first `warm_up` rounds are not counted: they choose kernels and allocate memory.
    """
    seconds: list[list[float]] = [[] for _ in modules]
    for _ in range(warm_up + rounds):
        for module, taken in zip(modules, seconds, strict=True):
            _wait(inputs.device)
            start = time.perf_counter()
            module(inputs)
            _wait(inputs.device)
            taken.append(time.perf_counter() - start)
    return [median(taken[warm_up:]) for taken in seconds]


def _wait(device: torch.device) -> None:
    """Wait for an accelerator's queue, as its forward returns before the work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
