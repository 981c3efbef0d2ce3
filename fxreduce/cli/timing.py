"""Latencies that can be compared: taken in turns, so that a noisy moment falls on all alike.

The turns are shuffled: on a busy machine the scheduler's time slices are about as long as a
forward, and in a fixed order they would hit the same module again and again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from statistics import median

import torch
from torch import Tensor, nn


@torch.no_grad()
def median_latencies(
    modules: Sequence[nn.Module], inputs: Tensor, *, rounds: int, warm_up: int = 3
) -> list[float]:
    """The median seconds of one forward of each module, over `rounds` that take each once.

    The first `warm_up` rounds are not counted: they choose kernels and allocate memory.
    """
    seconds: list[list[float]] = [[] for _ in modules]
    order = list(range(len(modules)))
    shuffle = Random(0).shuffle
    for _ in range(warm_up + rounds):
        shuffle(order)
        for index in order:
            _wait(inputs.device)
            start = time.perf_counter()
            modules[index](inputs)
            _wait(inputs.device)
            seconds[index].append(time.perf_counter() - start)
    return [median(taken[warm_up:]) for taken in seconds]


def _wait(device: torch.device) -> None:
    """Wait for an accelerator's queue, as its forward returns before the work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
