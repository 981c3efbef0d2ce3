"""How a pre-activation is cut into blocks that stay in the processor's caches.

Two layouts serve all others. Where the values of a channel lie side by side, as in (N, C, H, W),
a tensor is a list of rows that belong to one channel each and is reduced along its rows. Where the
channels lie side by side, as in (N, L, C) or channels-last memory, it is a list of positions and
is reduced over them. A tensor of either kind is read as [T, L, W], with T the number of threads
where that divides its length, so that every operation on a block gives a thread the same share of
it: what one core has written, another one does not fetch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes of a block. Smaller ones cost more launches of threads, larger ones leave the caches.
BLOCK = 5 << 20
# How many values one sum may take; `fxreduce.calibration.sums` says why.
LONGEST = 4095
# Channels with fewer values side by side than this are reduced over positions.
_SHORT = 32


@dataclass(frozen=True)
class Grid:
    """A tensor as [T, L, W], in blocks of [T, step, W].

    Attributes:
        shape: (T, L, W).
        step: rows or positions of a block, of each of the T parts.
        by_row: whether a block is reduced along W, one channel a row; else along L.
        moved_axis: the channel axis, counted from the right, where it has to become the last one
            for the memory to be in order; None where it need not.
        fold: (A, C, B), how the reduced numbers lie: A·B of each of C channels.
    """

    shape: tuple[int, int, int]
    step: int
    by_row: bool
    moved_axis: int | None
    fold: tuple[int, int, int]

    @classmethod
    def of(cls, z: Tensor, channel_axis: int, *, parts: int | None = None) -> Grid | None:
        """The grid of a tensor; None where its layout has none.

        Args:
            z: the tensor.
            channel_axis: counted from the right.
            parts: T; None is the number of threads where that divides the length, else 1.
        """
        moved = None if z.is_contiguous() else channel_axis
        if moved is not None and not z.movedim(channel_axis, -1).is_contiguous():
            return None
        if not z.numel():
            return None
        channels = z.shape[channel_axis]
        inner = 1 if moved is not None else math.prod(z.shape[z.dim() + channel_axis + 1 :])
        by_row = inner >= _SHORT
        width = _longest_part(inner) if by_row else channels * inner
        length = z.numel() // width
        if parts is None:
            threads = torch.get_num_threads()
            parts = threads if length % threads == 0 else 1
        # Half precision is widened to four bytes.
        fitting = BLOCK // (parts * width * max(z.element_size(), 4))
        most = fitting if by_row else min(fitting, LONGEST)
        if not most or (by_row and width < _SHORT):
            return None
        step = -(-length // (parts * -(-length // (parts * most))))  # blocks of equal length
        if by_row:
            fold = (length * width // (channels * inner), channels, inner // width)
        else:
            fold = (parts * -(-length // (parts * step)), channels, inner)
        return cls((parts, length // parts, width), step, by_row, moved, fold)

    @property
    def axis(self) -> int:
        """The axis of a block that is reduced."""
        return 2 if self.by_row else 1

    def blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        """The blocks of a tensor of this layout: views of it, [T, at most step, W]."""
        if self.moved_axis is not None:
            x = x.movedim(self.moved_axis, -1)
        return self._split(x.view(self.shape))

    def room(self, kinds: int, dtype: torch.dtype) -> Tensor:
        """Room for the reduced numbers of several kinds, [kinds, ...]."""
        parts, length, width = self.shape
        if self.by_row:
            return torch.empty(kinds, parts, length, dtype=dtype)
        return torch.empty(kinds, -(-length // self.step), parts, width, dtype=dtype)

    def cells(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """Where each block's numbers go in the room of one kind."""
        return self._split(numbers) if self.by_row else numbers.unbind()

    def per_block(self, channels: Tensor) -> tuple[Tensor, ...]:
        """A number per channel, [C], as what broadcasts against each block."""
        outer, count, inner = self.fold
        parts, length, _ = self.shape
        if not self.by_row:
            return (channels.repeat_interleave(inner),) * -(-length // self.step)
        rows = channels.view(1, count, 1).expand(outer, count, inner)
        return self._split(rows.reshape(parts, length, 1))

    def per_channel(self, numbers: Tensor) -> Tensor:
        """Reduced numbers, [..., what `room` has for one kind], summed per channel: [..., C]."""
        outer, count, inner = self.fold
        leading = numbers.shape[: -2 if self.by_row else -3]
        sums = numbers.reshape(*leading, outer, count, inner).sum(-3, dtype=torch.float64)
        return sums.squeeze(-1) if inner == 1 else sums.sum(-1)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.step == self.shape[1]:
            return (
                x,
            )  # most sites of a small batch are one block, and splitting costs microseconds
        return torch.split(x, self.step, 1)


def _longest_part(length: int) -> int:
    """The largest divisor of a row's length that one sum takes."""
    pieces = -(-length // LONGEST)
    while length % pieces:
        pieces += 1
    return length // pieces
