"""Latencies that can be compared: taken in turns, so that a noisy moment falls on all alike.

The turns are shuffled: on a busy machine the scheduler's time slices are about as long as a
forward, and in a fixed order they would hit the same module again and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median

import torch


def median_latencies(
    calls: Sequence[Callable[[], object]], device: torch.device, *, rounds: int, warm_up: int = 3
) -> list[float]:
    """The median seconds of each call, over `rounds` that make each once.

    The first `warm_up` rounds are not counted: they choose kernels and allocate memory.
    """
    return [median(each) for each in _taken(calls, device, rounds, warm_up)]


def least_latencies(
    calls: Sequence[Callable[[], object]], device: torch.device, *, rounds: int, warm_up: int = 3
) -> list[float]:
    """The least seconds of each call; see `median_latencies`.

    For calls that are compared over hours: whatever else runs on the machine only adds to them.
    """
    return [min(each) for each in _taken(calls, device, rounds, warm_up)]


@torch.no_grad()
def _taken(
    calls: Sequence[Callable[[], object]], device: torch.device, rounds: int, warm_up: int
) -> list[list[float]]:
    """The seconds of each call in each of the rounds that count."""
    seconds: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    shuffle = Random(0).shuffle
    for _ in range(warm_up + rounds):
        shuffle(order)
        for index in order:
            _wait(device)
            start = time.perf_counter()
            calls[index]()
            _wait(device)
            seconds[index].append(time.perf_counter() - start)
    return [taken[warm_up:] for taken in seconds]


def _wait(device: torch.device) -> None:
    """Wait for an accelerator's queue, as its calls return before the work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
