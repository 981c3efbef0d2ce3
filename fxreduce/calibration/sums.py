"""The sums that a batch of pre-activations adds to the statistics of its channels.

On a CPU a tensor is read once, in blocks that stay in cache, with scratch memory that is kept:
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
from math import inf

import torch
from torch import Tensor

from fxreduce.calibration.batch_norm import BatchNorm
from fxreduce.calibration.grid import BLOCK, Grid

Rectify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fill:
    """A rectifier ψ for blocks.

    Attributes:
        write: writes the rectified first argument to the second one, which may be the first.
        bound: b where ψ(z) = min(max(z, 0), b): infinity for ReLU, 6 for ReLU6, None for rectifiers
            of another form. Then z·ψ(z) = ψ(z)² + b·(max(z, 0) − ψ(z)).
    """

    write: Callable[[Tensor, Tensor], object]
    bound: float | None = None


# Of each dtype: a factor that lifts every non-zero value at least to the bound, and the bound.
_CODES = {torch.float32: (2.0**127, 2.0**-22), torch.float64: (2.0**1023, 2.0**-51)}
_RATIO = 4096.0  # of a positive value's code to a negative value's

# A mean further from zero than this many standard deviations is subtracted before squaring. Its
# estimate takes at least so many values of each channel.
_FAR, _SAMPLE = 16.0, 4096

_thread = threading.local()


@dataclass(frozen=True)
class Shift:
    """What is subtracted before squaring, so that a mean far from zero costs no digits.

    Attributes:
        z: [C], near the mean of the pre-activation.
        output: [C], the rectified `z`.
    """

    z: Tensor
    output: Tensor

    @classmethod
    def near(cls, z: Tensor, channel_axis: int, rectify: Rectify) -> Shift | None:
        """A shift near the means of pre-activations like these; None where they are near zero."""
        if not z.numel():
            return None
        axes = [axis for axis in range(z.dim()) if axis != z.dim() + channel_axis]
        z = z if axes else z.unsqueeze(0)
        variance, mean = torch.var_mean(widened(z), axes or [0], correction=0)
        if bool((mean.abs() <= _FAR * variance.sqrt()).all()):
            return None
        shape = [1] * z.dim()
        shape[channel_axis] = -1
        aligned = mean.nan_to_num(0.0, 0.0, 0.0).to(z.dtype).view(shape)
        return cls(widened(aligned).flatten(), widened(rectify(aligned)).flatten())


def sampled(z: Tensor, channel_axis: int) -> Tensor:
    """The first samples of a batch, enough to estimate the means of the channels."""
    per_sample = z[:1].numel() // max(z.shape[channel_axis], 1)
    alone = channel_axis == -z.dim()  # the batch axis is that of the channels
    return z if alone else z[: -(-_SAMPLE // max(per_sample, 1))]


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
    if not axes:  # torch takes no axes for all axes
        z, axes = z.unsqueeze(0), [0]
        output = None if output is None else output.unsqueeze(0)
    on, off, finite = (x.sum(axes) for x in (z > 0, z < 0, z.isfinite()))
    count = z.numel() // max(z.shape[channel_axis], 1)
    rows = [x.double().masked_fill(finite != count, torch.nan) for x in (on, off)]
    if output is not None:
        u, v = widened(z), widened(output)
        if shift is not None:
            aligned = [-1, *[1] * (-channel_axis - 1)]
            u, v = u - shift.z.view(aligned), v - shift.output.view(aligned)
        rows += [x.sum(axes, dtype=torch.float64) for x in (u, v, u * u, v * v, u * v)]
    return torch.stack(rows)


class BlockSums:
    """The sums of tensors of one shape and layout on a CPU, in one pass over memory.

    What depends on the shape alone is prepared once. Numbers come as the blocks give them, and
    those of several batches are added up per channel together.
    """

    def __init__(
        self,
        grid: Grid,
        dtype: torch.dtype,
        shift: Shift | None = None,
        norm: BatchNorm | None = None,
    ) -> None:
        self.grid = grid
        self.dtype = dtype if dtype in _CODES else torch.float32
        self._wide = dtype == self.dtype
        self._factor, self._bound = _CODES[self.dtype]
        parts, _, width = grid.shape
        size = parts * grid.step * width
        self._scratch = [
            _memory(number, self.dtype)[:size].view(parts, -1, width) for number in range(4)
        ]
        self._shifts: tuple[tuple[Tensor, ...], ...] = ()
        if shift is not None:
            self._shifts = (grid.per_block(shift.z), grid.per_block(shift.output))
        self._norm = None if norm is None else norm.blocks(grid)

    def counts(self, z: Tensor, output: Tensor | None, fill: Fill | None) -> Tensor:
        """The numbers of a batch for its counts, [1, ...].

        Args:
            z: pre-activation, or the input of the batch-norm whose output that is.
            output: where `fill` writes the rectified pre-activation; may be `z`.
            fill: rectifies a block while it is in cache; None leaves that to others.
        """
        numbers = self.grid.room(1, self.dtype)
        cells = self.grid.cells(numbers[0])
        blocks = self.grid.blocks(z)
        targets = blocks if output is z or output is None else self.grid.blocks(output)
        for index, (block, target, cell) in enumerate(zip(blocks, targets, cells, strict=True)):
            block = self._normed(index, block, target)
            self._encode(self._widened(block, 1), cell)
            if fill is not None:
                fill.write(block, target)
        return numbers

    def moments(
        self, z: Tensor, output: Tensor | None, fill: Fill | None, rectify: Rectify
    ) -> Tensor:
        """The numbers of a batch for its counts and moments, [6, ...].

        Args:
            z: pre-activation, or the input of the batch-norm whose output that is.
            output: the rectified pre-activation, or where `fill` writes it, which may be `z`.
            fill: rectifies a block while it is in cache.
            rectify: gives the outputs of a block where `output` is None.
        """
        numbers = self.grid.room(6, self.dtype)
        cells = [self.grid.cells(each) for each in numbers]
        blocks = self.grid.blocks(z)
        targets = blocks if output is z or output is None else self.grid.blocks(output)
        for index, (block, target) in enumerate(zip(blocks, targets, strict=True)):
            own = [each[index] for each in cells]
            block = self._normed(index, block, target)
            u = self._widened(block, 1)
            self._encode(u, own[0])
            if self._shifts:
                u = torch.sub(u, self._shifts[0][index], out=self._like(1, u))
            self._sum_and_square(u, own[1], own[3])
            bound = None if fill is None or self._shifts else fill.bound
            if bound is not None and bound < inf:
                self._clip(block, target, bound, own[5])
            elif fill is not None:
                if bound is None and u is target:  # which is about to be overwritten
                    u = self._like(1, u).copy_(u)
                fill.write(block, target)
            v = rectify(block) if output is None else target
            v = self._widened(v, 2)
            if self._shifts:
                v = torch.sub(v, self._shifts[1][index], out=self._like(2, v))
            self._sum_and_square(v, own[2], own[4])
            if bound is None:
                torch.sum(torch.mul(u, v, out=self._like(0, u)), self.grid.axis, out=own[5])
            else:
                self._cross(bound, own[2], own[4], own[5])
        return numbers

    def per_channel(self, numbers: Tensor) -> Tensor:
        """The sums of several batches, as `whole_sums` gives them.

        Args:
            numbers: of B batches, [B, kinds, ...]; overwritten.

        Returns:
            float64 [B, 2, C], with moments [B, 7, C].
        """
        codes = numbers[:, 0].div_(self._bound)
        on = torch.floor(codes)
        codes.sub_(on)  # off / 4096, as there are fewer than 4096
        if self.grid.by_row:
            numbers[:, 3:5].square_()
        counts, on = self.grid.per_channel(numbers), self.grid.per_channel(on)
        counts[:, 0].mul_(_RATIO)
        return torch.cat([on.neg_().unsqueeze(1), counts], 1)

    def _normed(self, index: int, block: Tensor, target: Tensor) -> Tensor:
        """The block of the pre-activation, which a batch-norm leaves where the output will be."""
        if self._norm is None:
            return block
        self._norm.write(index, block, target)
        return target

    def _encode(self, z: Tensor, cell: Tensor) -> None:
        e = self._like(0, z)
        torch.sub(z, z, alpha=self._factor, out=e)
        e.clamp_(-self._bound, self._bound / _RATIO)
        torch.sum(e, self.grid.axis, out=cell)

    def _sum_and_square(self, x: Tensor, sums: Tensor, squares: Tensor) -> None:
        """Sums of x and of x² (by row their square roots) of a block."""
        axis = self.grid.axis
        torch.sum(x, axis, out=sums)
        if self.grid.by_row:  # the norm needs no room for the squares
            torch.linalg.vector_norm(x, 2, axis, out=squares)
        else:
            torch.sum(torch.mul(x, x, out=self._like(0, x)), axis, out=squares)

    def _clip(self, block: Tensor, target: Tensor, bound: float, cell: Tensor) -> None:
        """Rectify a block and clip it, and sum max(z, 0) in between."""
        torch.clamp(block, min=0, out=target)
        torch.sum(self._widened(target, 2), self.grid.axis, out=cell)
        target.clamp_(max=bound)

    def _cross(self, bound: float, sums: Tensor, squares: Tensor, cell: Tensor) -> None:
        """The sums of u·v = v² + b·(max(u, 0) − v); where v is clipped the cell has max(u, 0)'s."""
        if bound < inf:
            cell.sub_(sums).mul_(bound)
        else:
            cell.zero_()
        if self.grid.by_row:
            cell.addcmul_(squares, squares)
        else:
            cell.add_(squares)

    def _like(self, number: int, block: Tensor) -> Tensor:
        """Scratch memory for a block, which may be shorter than the others."""
        memory = self._scratch[number]
        length = block.shape[1]
        return memory if memory.shape[1] == length else memory[:, :length]

    def _widened(self, block: Tensor, number: int) -> Tensor:
        """The block in the dtype of the sums."""
        return block if self._wide else self._like(number, block).copy_(block)


def widened(x: Tensor) -> Tensor:
    """The tensor in the dtype in which it is summed."""
    return x if x.dtype in _CODES else x.float()


def _memory(number: int, dtype: torch.dtype) -> Tensor:
    """A block of memory of this thread. It is kept, as touching fresh pages costs time."""
    if not hasattr(_thread, "memory"):
        _thread.memory = {}
    kept: dict[tuple[int, torch.dtype], Tensor] = _thread.memory
    if (number, dtype) not in kept:
        with torch.inference_mode(False):
            kept[number, dtype] = torch.empty(BLOCK // dtype.itemsize, dtype=dtype)
    return kept[number, dtype]
