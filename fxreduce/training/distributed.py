"""Joining the processes that torchrun started, and what training needs to share among them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fxreduce.calibration.ranks import is_distributed


def world_size() -> int:
    """How many processes compute together."""
    return distributed.get_world_size() if is_distributed() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; yields the device of this one.

    On CUDA every process of a machine gets the device of its local rank.
    """
    if is_distributed() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, the same on each; `values` are not changed."""
    if not is_distributed():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def summed_with_gradient(values: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow back to each part."""
    total: Tensor = _Sum.apply(values)
    return total


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers, which may differ among them."""
    if is_distributed():
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


class _Sum(torch.autograd.Function):
    """Each process's output depends on what all have, so that its gradient is their sum, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        return summed(values.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        (gradient,) = gradients
        return summed(gradient.contiguous())
