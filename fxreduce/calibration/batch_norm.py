"""A batch-norm before a rectifier, which an observer computes on its way through memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxreduce.calibration.grid import Grid


@dataclass(frozen=True)
class BatchNorm:
    """A batch-norm of axis 1 by its running statistics.

    Attributes:
        mean, variance: [C].
        weight, bias: [C], or None.
        eps: what is added to the variance.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised tensor."""
        cudnn = torch.backends.cudnn.enabled
        given = (self.weight, self.bias, self.mean, self.variance)
        return torch.batch_norm(x, *given, False, 0.0, self.eps, cudnn)

    def has_blocks(self, x: Tensor) -> bool:
        """Whether torch has one kernel for all of `x` and for blocks of it, with the same bits.

        It computes tensors with gaps, or of several dtypes, by another formula.
        """
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        last = x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])
        own = [
            each for each in (self.mean, self.variance, self.weight, self.bias) if each is not None
        ]
        alike = all(each.is_contiguous() and each.dtype == x.dtype for each in own)
        return (x.is_contiguous() or last) and alike and x.dtype in (torch.float32, torch.float64)

    def blocks(self, grid: Grid) -> NormBlocks:
        """The same for the blocks of tensors, whose grid has one part."""
        return NormBlocks(self, grid)


class NormBlocks:
    """A batch-norm of blocks: torch's own kernel, whose bits do not depend on where one begins."""

    def __init__(self, norm: BatchNorm, grid: Grid) -> None:
        tensors = (norm.weight, norm.bias, norm.mean, norm.variance)
        kept = [None if each is None else grid.per_block(each.detach()) for each in tensors]
        count = next(len(each) for each in kept if each is not None)
        self._tensors = [
            [None if each is None else each[index].flatten().contiguous() for each in kept]
            for index in range(count)
        ]
        self._eps = norm.eps
        self._by_row = grid.by_row
        self._unused = torch.empty(0, dtype=norm.mean.dtype), torch.empty(0, dtype=norm.mean.dtype)

    def write(self, index: int, block: Tensor, out: Tensor) -> None:
        """Write a normalised block; `out` may be the block."""
        if not self._by_row:  # positions of channels, else rows that belong to one channel each
            block, out = block[0], out[0]
        mean, invstd = self._unused
        torch.ops.aten.native_batch_norm.out(
            block,
            *self._tensors[index],
            False,
            0.0,
            self._eps,
            out=out,
            save_mean=mean,
            save_invstd=invstd,
        )
