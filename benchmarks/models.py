"""Models with random weights for the benchmarks."""

from __future__ import annotations

import timm
import torch
import torchvision
from torch import nn


def build(name: str, size: int) -> nn.Module:
    """A model of torchvision, or of timm as `timm:NAME`, in eval mode.

    Its batch-norms have random scales and shifts, and the statistics of images of `size` pixels a
    side: what training leaves.
    """
    torch.manual_seed(0)
    source, _, rest = name.rpartition(":")
    make = timm.create_model if source == "timm" else torchvision.models.get_model
    model: nn.Module = make(rest)
    for module in _batch_norms(model):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, 0, 0.5)
    return settle(model, size)


@torch.no_grad()
def settle(model: nn.Module, size: int) -> nn.Module:
    """Give the model's batch-norms the statistics of images of `size` pixels a side.

    With statistics from nowhere most channels of a deep model would be constant.
    """
    norms = _batch_norms(model)
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over what it sees
    if norms:
        model.train()(torch.randn(2, 3, size, size))
    return model.eval()


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
