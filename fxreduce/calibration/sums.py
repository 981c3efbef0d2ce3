"""The sums that a batch of pre-activations adds to the statistics of its channels.

On a CPU the tensor is read once, in blocks that stay in cache, with scratch memory that is kept:
fresh pages would cost more than the arithmetic. Both counts come from one sum:

    e = clamp(z − z·2^127, −2^-22, 2^-34)        (float32; float64 likewise from 2^1023)

is −2^-22 where z > 0, 2^-34 where z < 0 and 0 where z = ±0, the smallest subnormal numbers
included, and NaN where z is NaN or infinite. A sum of up to 4095 of them is exact in float32 and is
off·2^-34 − on·2^-22, from which both counts can be read. So comparing, counting and watching for
values that are not finite take three operations per block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fxreduce.calibration.grid import BLOCK, Grid

Rectify = Callable[[Tensor], Tensor]
# Writes the rectified first argument to the second one, which may be the first.
Fill = Callable[[Tensor, Tensor], object]

# Of each dtype: a factor that lifts every non-zero value at least to the bound, and the bound.
_CODES = {torch.float32: (2.0**127, 2.0**-22), torch.float64: (2.0**1023, 2.0**-51)}
_RATIO = 4096.0  # of a positive value's code to a negative value's

_scratch = threading.local()


@dataclass(frozen=True)
class Shift:
    """What is subtracted before squaring, so that a mean far from zero costs no digits.

    Attributes:
        z: [C], near the mean of the pre-activation.
        output: [C], the rectified `z`.
    """

    z: Tensor
    output: Tensor


def whole_sums(
    z: Tensor, channel_axis: int, output: Tensor | None = None, shift: Shift | None = None
) -> Tensor:
    """The sums of a batch by operations on whole tensors, for any device and layout.

    Args:
        z: pre-activation.
        channel_axis: its channel axis, counted from the right.
        output: the rectified pre-activation, for the moments; None takes the counts alone.
        shift: see `Shift`; None is no shift.

    Returns:
        float64 [2, C]: how many values are positive, and negative; NaN for a channel with values
        that are not finite. With moments [7, C]: below these the sums of u, v, u², v² and u·v,
        where u = z − shift.z and v = output − shift.output.
    """
    axes = [axis for axis in range(z.dim()) if axis != z.dim() + channel_axis]
    on, off, finite = (_total(x, axes) for x in (z > 0, z < 0, torch.isfinite(z)))
    count = z.numel() // max(z.shape[channel_axis], 1)
    rows = [x.double().masked_fill(finite != count, torch.nan) for x in (on, off)]
    if output is not None:
        u, v = _widened(z), _widened(output)
        if shift is not None:
            aligned = [-1, *[1] * (-channel_axis - 1)]
            u, v = u - shift.z.view(aligned), v - shift.output.view(aligned)
        rows += [_total(x.double(), axes) for x in (u, v, u * u, v * v, u * v)]
    return torch.stack(rows)


def block_counts(z: Tensor, grid: Grid, output: Tensor | None, fill: Fill | None) -> Tensor:
    """`whole_sums` without moments, in one pass over memory.

    Args:
        z: pre-activation on a CPU.
        grid: its blocks.
        output: where `fill` writes the rectified blocks; may be `z`.
        fill: rectifies; None leaves that to others.
    """
    work = _Work(grid, z.dtype)
    room = grid.room(2, work.dtype)
    targets = grid.blocks(z if output is None else output)
    for block, target, code in zip(grid.blocks(z), targets, grid.cells(room[1]), strict=True):
        work.encode(work.widened(block, 0), code)
        if fill is not None:
            fill(block, target)
    return _per_channel(room, grid)


def block_moments(
    z: Tensor,
    grid: Grid,
    output: Tensor | None,
    fill: Fill | None,
    rectify: Rectify | None,
    shift: Shift | None,
) -> Tensor:
    """`whole_sums` with moments, in one pass over memory.

    Args:
        z: pre-activation on a CPU.
        grid: its blocks.
        output: the rectified pre-activation, or where `fill` writes it, which may be `z`; None
            leaves rectifying to others.
        fill: rectifies a block.
        rectify: gives the outputs of a block where there is neither `output` nor `fill`.
        shift: see `Shift`.
    """
    work = _Work(grid, z.dtype)
    room = grid.room(7, work.dtype)
    blocks = grid.blocks(z)
    targets = blocks if output is None else grid.blocks(output)
    shifts = None
    if shift is not None:
        shifts = zip(grid.per_block(shift.z), grid.per_block(shift.output), strict=True)
    for block, target, *cells in zip(blocks, targets, *map(grid.cells, room[1:]), strict=True):
        u = work.widened(block, 0)
        work.encode(u, cells[0])
        v = target
        if output is z and fill is not None:
            v = work.scratch(2, target)
            fill(u, v)  # in the dtype of the sums, as v is
        elif fill is not None:
            fill(block, target)
        elif output is None:
            v = cast(Rectify, rectify)(block)
        v = work.widened(v, 2)
        if shifts is not None:
            u_shift, v_shift = next(shifts)
            u = torch.sub(u, u_shift, out=work.scratch(1, u))
            v = torch.sub(v, v_shift, out=work.scratch(2, u))
        work.moments(u, v, cells[1:])
        if output is z and fill is not None:
            fill(block, block)
    return _per_channel(room, grid)


class _Work:
    """The operations on blocks, with their scratch memory."""

    def __init__(self, grid: Grid, dtype: torch.dtype) -> None:
        self.grid = grid
        self.dtype = dtype if dtype in _CODES else torch.float32
        self.factor, self.bound = _CODES[self.dtype]
        self._views: dict[int, Tensor] = {}

    def scratch(self, number: int, like: Tensor) -> Tensor:
        """Memory for a block; the same number gives the same memory."""
        if number not in self._views:
            parts, _, width = self.grid.shape
            size = parts * self.grid.step * width
            self._views[number] = _memory(number, self.dtype)[:size].view(parts, -1, width)
        view, length = self._views[number], like.shape[1]
        return view if view.shape[1] == length else view[:, :length]

    def widened(self, block: Tensor, number: int) -> Tensor:
        """The block in the dtype of the sums."""
        if block.dtype == self.dtype:
            return block
        return self.scratch(number, block).copy_(block)

    def encode(self, z: Tensor, code: Tensor) -> None:
        """Write the sums of the codes of a block."""
        e = self.scratch(3, z)
        torch.sub(z, z, alpha=self.factor, out=e).clamp_(-self.bound, self.bound / _RATIO)
        torch.sum(e, self.grid.axis, out=code)

    def moments(self, u: Tensor, v: Tensor, cells: list[Tensor]) -> None:
        """Write the sums of u, v, u², v² and u·v of a block."""
        torch.sum(u, self.grid.axis, out=cells[0])
        torch.sum(v, self.grid.axis, out=cells[1])
        self._dot(u, u, cells[2])
        self._dot(v, v, cells[3])
        self._dot(u, v, cells[4])

    def _dot(self, x: Tensor, y: Tensor, cell: Tensor) -> None:
        if x is y and self.grid.by_row:  # needs no room for the products
            torch.linalg.vector_norm(x, 2, self.grid.axis, out=cell).square_()
        else:
            torch.sum(torch.mul(x, y, out=self.scratch(3, x)), self.grid.axis, out=cell)


def _per_channel(room: Tensor, grid: Grid) -> Tensor:
    """The sums per channel, from numbers whose kind 1 are the codes' sums and kind 0 is free."""
    codes = room[1].div_(_CODES[room.dtype][1])
    torch.floor(codes, out=room[0])
    codes.sub_(room[0])  # off / 4096, as there are fewer than 4096 of them
    sums = grid.per_channel(room)
    sums[0].neg_()
    sums[1].mul_(_RATIO)
    return sums


def _memory(number: int, dtype: torch.dtype) -> Tensor:
    """A block of memory of this thread. It is kept, as touching fresh pages costs time."""
    if not hasattr(_scratch, "kept"):
        _scratch.kept = {}
    kept: dict[tuple[int, torch.dtype], Tensor] = _scratch.kept
    if (number, dtype) not in kept:
        with torch.inference_mode(False):
            kept[number, dtype] = torch.empty(BLOCK // dtype.itemsize, dtype=dtype)
    return kept[number, dtype]


def _total(x: Tensor, axes: list[int]) -> Tensor:
    """The sum over axes; over none it is the tensor itself, where torch would take all."""
    return x.sum(axes) if axes else x


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype in _CODES else x.float()
