"""Batch-norms in training that normalise by the samples of all processes together.

    μ = Σ x / N,   σ² = Σ (x − μ)² / N,   y = γ·(x − μ) / √(σ² + ε) + β,   the sums over all ranks

So several processes train as one does on the whole batch. torch.nn.SyncBatchNorm does the same, on
CUDA alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxreduce.training.distributed import summed_with_gradient, world_size


@contextmanager
def shared_statistics(module: nn.Module) -> Iterator[None]:
    """Within it the batch-norms of a module normalise over all ranks, whose batches are as large.

    Those that are functions, not modules, normalise by the part of their rank as before.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    norms = norms if world_size() > 1 else []
    for norm in norms:
        norm.__dict__["forward"] = partial(_forward, norm)  # a call looks there before the class
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """The batch-norm of this rank's part `[N, C, ...]`."""
    if not norm.training:
        y: Tensor = type(norm).forward(norm, x)
        return y
    given = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    count = x.numel() // x.shape[1] * world_size()
    mean = summed_with_gradient(given.sum(axes)) / count
    centred = given - mean.view(shape)
    variance = summed_with_gradient(centred.square().sum(axes)) / count
    _track(norm, mean.detach(), variance.detach() * (count / max(count - 1, 1)))
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    y = centred * scale.view(shape)
    return (y + norm.bias.view(shape) if norm.affine else y).to(x.dtype)


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a batch, as torch does."""
    if not norm.track_running_stats:
        return
    assert norm.running_mean is not None  # as it has all three of them or none
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = norm.momentum
    if share is None:  # the mean of all batches
        share = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_(variance.to(norm.running_var), share)
