"""An observer takes the statistics of one rectifier's pre-activation while a model runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor, nn

from fxreduce.calibration.batch_norm import BatchNorm
from fxreduce.calibration.grid import Grid
from fxreduce.calibration.statistics import ChannelStatistics, Moments, binary_entropy
from fxreduce.calibration.sums import BlockSums, Fill, Rectify, Shift, sampled, whole_sums
from fxreduce.errors import CalibrationError

# Numbers that wait to be added up together: many batches cost hardly more than one.
_WAITING = 1 << 17


class Observer(nn.Module):
    """Counts the signs of each channel of a pre-activation, and takes moments if wanted.

    An observer that `replaces` the rectifier's call returns what the call returns, bit for bit,
    and writes over its input where the call does. Given `fill`, it rectifies every block while it
    has it in cache, so that observing and rectifying share one pass over memory. Any other observer
    returns its input, and the call follows it. Given `norm`, it also takes the place of the
    batch-norm before the call, and all three share the pass. Gradients pass through an observer.

    Args:
        site: name of the rectifier's call.
        channel_axis: counted from the right: -3 for (N, C, H, W), -1 for (N, L, C) and (N, C).
        rectify: the rectifier as a function that overwrites nothing; needed to take moments and to
            replace the call. Where `in_place` is set and there is no `fill`, it is called on parts
            of the pre-activation and must be elementwise.
        moments: whether to take the moments of pre-activation and output.
        fill: the rectifier for blocks, from `fxreduce.calibration.fill.filling`.
        in_place: whether the observer overwrites its input, as an in-place call does.
        norm: the batch-norm whose input the observer is fed with; needs `fill`. Its tensors are
            read when inputs of another shape or layout come, and after `reset`.

    Attributes:
        replaces: whether the observer takes the place of the call.
        norm: the batch-norm that it takes the place of, too.

    Raises:
        CalibrationError: the channel axis is counted from the left, or `rectify` or `fill` is
            missing where it is needed.
    """

    def __init__(
        self,
        site: str,
        channel_axis: int,
        *,
        rectify: Rectify | None,
        moments: bool,
        fill: Fill | None = None,
        in_place: bool = False,
        norm: BatchNorm | None = None,
    ) -> None:
        super().__init__()
        if channel_axis >= 0:
            raise CalibrationError(
                f"the channel axis of {site} must be counted from the right, as -1 or -3; seen: "
                f"{channel_axis}"
            )
        if moments and rectify is None:
            raise CalibrationError(
                f"the moments of {site} need its rectifier; pass rectify, or moments=False"
            )
        if norm is not None and (rectify is None or fill is None):
            raise CalibrationError(
                f"the batch-norm before {site} can be computed only with a rectifier that is "
                "applied block by block; pass rectify and fill, or norm=None"
            )
        self.site = site
        self.channel_axis = channel_axis
        self.moments = moments
        self.in_place = in_place
        self.replaces = rectify is not None and (fill is not None or not in_place)
        # In a tuple it is no child: the model owns its rectifiers.
        self._rectify: tuple[Rectify, ...] = () if rectify is None else (rectify,)
        self._fill = fill if self.replaces else None
        self.norm = norm
        self.reset()

    def reset(self) -> None:
        """Forget all that was seen."""
        self._key: object = None
        self._sums: BlockSums | None = None  # for pre-activations of the latest kind
        self._waiting: list[Tensor] = []  # the numbers of batches of that kind
        self._latest: Tensor | None = None  # NaN in it tells of values that are not finite
        self._totals: Tensor | None = None  # over batches; the last two rows are entropies
        self._batches = 0
        self._count = 0  # values per channel
        self._shift: Shift | None = None

    def forward(self, z: Tensor) -> Tensor:
        """Observe a batch.

        Raises:
            CalibrationError: it has no such channel axis, another number of channels than the
                batches before, or no floating-point numbers.
        """
        if torch.is_grad_enabled() and z.requires_grad:
            return self._with_gradient(z)
        with torch.no_grad():
            key = (z.shape, z.stride(), z.dtype, torch.get_num_threads(), threading.get_ident())
            if key != self._key:
                self._prepare(z, key)
            if self._sums is not None:
                return self._blocked(z, self._sums)
            in_place = self.in_place or self.norm is not None  # the normalised tensor is its own
            z = self._normed(z)
            self._whole(z)
            if self._fill is not None and in_place:
                self._fill.write(z, z)
                return z
            return self._rectified(z) if self.replaces else z

    def _with_gradient(self, z: Tensor) -> Tensor:
        given, z = z, self._normed(z)
        with torch.no_grad():
            self._prepare(given, None)
            self._sums = None
            self._whole(z.detach())
        if not self.replaces:
            return z
        if self.in_place and z is given:
            return z.copy_(self._rectified(z.clone()))
        return self._rectified(z)

    @property
    def statistics(self) -> ChannelStatistics:
        """What was seen so far.

        Raises:
            CalibrationError: nothing was seen, or values that are not finite.
        """
        self._add_up()
        if self._totals is None:
            raise CalibrationError(f"{self.site} has seen no values; calibrate with a batch first")
        on, off = self._totals[:2].long()
        return ChannelStatistics(
            on,
            off,
            self._count - on - off,
            self._totals[-2].clone(),
            self._batches,
            self._moments(self._totals[2:-2]) if self.moments else None,
            self._totals[-1].clone(),
        )

    @property
    def has_seen(self) -> bool:
        """Whether there are statistics."""
        return bool(self._waiting) or self._totals is not None

    def _prepare(self, z: Tensor, key: object) -> None:
        """Make ready for inputs of this shape, layout and dtype."""
        if not z.is_floating_point() or z.dim() < -self.channel_axis:
            raise CalibrationError(
                f"the pre-activation of {self.site} must be floating-point and have a channel axis "
                f"{self.channel_axis}; seen: {z.dtype} of shape {tuple(z.shape)}"
            )
        self._add_up()
        channels = z.shape[self.channel_axis]
        if self._totals is not None and self._totals.shape[1] != channels:
            raise CalibrationError(
                f"{self.site} must have the same channels in every batch; seen: "
                f"{self._totals.shape[1]}, then {channels} in shape {tuple(z.shape)}. Inputs of "
                "other sizes need the channel axis to be another one"
            )
        if self.moments and self._totals is None:
            # Batches with one shift can be added, so the first one decides.
            sample = self._normed(sampled(z, self.channel_axis))
            self._shift = Shift.near(sample, self.channel_axis, self._rectified)
        parts = None if self.norm is None else 1  # torch's kernel takes a block that has no gaps
        grid = Grid.of(z, self.channel_axis, parts=parts) if self._has_blocks(z) else None
        self._sums = None if grid is None else BlockSums(grid, z.dtype, self._shift, self.norm)
        self._per_channel = z.numel() // max(channels, 1)
        self._key = key

    def _has_blocks(self, z: Tensor) -> bool:
        if self.norm is not None and self.channel_axis != 1 - z.dim():
            return False
        return z.device.type == "cpu" and (self.norm is None or self.norm.has_blocks(z))

    def _blocked(self, z: Tensor, sums: BlockSums) -> Tensor:
        output = None
        if self._fill is not None:
            output = z if self.in_place else torch.empty_like(z)
        if self.moments:
            if self.replaces and output is None:
                output = self._rectified(z)
            numbers = sums.moments(z, _laid_out_like(z, output), self._fill, self._rectified)
        else:
            numbers = sums.counts(z, output, self._fill)
            if self.replaces and output is None:
                output = self._rectified(z)
        self._wait(numbers, numbers[0])
        return z if output is None else output

    def _whole(self, z: Tensor) -> None:
        if not z.numel():
            return
        output = self._rectified(z) if self.moments else None
        sums = whole_sums(z, self.channel_axis, output, self._shift)
        self._wait(sums, sums[:2])

    def _normed(self, z: Tensor) -> Tensor:
        return z if self.norm is None else self.norm(z)

    def _rectified(self, z: Tensor) -> Tensor:
        (rectify,) = self._rectify
        return rectify(z)

    def _wait(self, numbers: Tensor, latest: Tensor) -> None:
        self._latest = latest
        self._waiting.append(numbers)
        if len(self._waiting) * numbers.numel() > _WAITING:
            self._add_up()

    def _add_up(self) -> None:
        """Add the numbers of the waiting batches to the totals."""
        if not self._waiting:
            return
        numbers = torch.stack(self._waiting)
        sums = numbers if self._sums is None else self._sums.per_channel(numbers)
        if not bool(sums.sum().isfinite()):
            self._raise_not_finite(sums)
        shares = sums[:, :2] / self._per_channel
        # Zeros are ON in the first, OFF in the second.
        entropies = torch.stack([binary_entropy(1 - shares[:, 1]), binary_entropy(shares[:, 0])], 1)
        added = torch.cat([sums, entropies], 1).sum(0)
        self._totals = added if self._totals is None else self._totals + added
        self._batches += len(sums)
        self._count += len(sums) * self._per_channel
        self._waiting.clear()

    def _raise_not_finite(self, sums: Tensor) -> NoReturn:
        """`sums` are those of several batches, [B, kinds, C]."""
        for batch, each in enumerate(sums, self._batches):
            if not bool(each[:2].isfinite().all()):
                raise CalibrationError(_not_finite(self.site, batch))
        raise CalibrationError(
            f"the moments of {self.site} must fit in {torch.float32}; its pre-activation is too "
            "large for that. Scale the weights before it, or calibrate in float64"
        )

    def _moments(self, sums: Tensor) -> Moments:
        u, v, uu, vv, uv = sums
        n = self._count
        z, out = (0.0, 0.0) if self._shift is None else (self._shift.z, self._shift.output)
        return Moments(
            n,
            z + u / n,
            (uu - u * u / n).clamp(min=0),
            out + v / n,
            (vv - v * v / n).clamp(min=0),
            uv - u * v / n,
        )


def require_finite(observers: Iterable[Observer], batch: int) -> None:
    """Check what observers saw last on a CPU; `statistics` checks all that they have seen.

    Looking at an accelerator's numbers would wait for its queue, batch after batch.

    Raises:
        CalibrationError: there were values that are not finite; names the batch and the first site.
    """
    seen = [(each.site, each._latest) for each in observers]
    latest = [(site, numbers) for site, numbers in seen if numbers is not None and numbers.is_cpu]
    if latest and bool(torch.cat([numbers.flatten() for _, numbers in latest]).sum().isnan()):
        site = next(site for site, numbers in latest if bool(numbers.isnan().any()))
        raise CalibrationError(_not_finite(site, batch))


def _laid_out_like(z: Tensor, output: Tensor | None) -> Tensor | None:
    """The output, copied if its memory has another order than that of `z`."""
    if output is None or output.stride() == z.stride():
        return output
    return torch.empty_like(z).copy_(output)


def _not_finite(site: str, batch: int) -> str:
    return (
        f"the pre-activation of {site} must be finite; it has NaN or infinity in batch {batch}, "
        "counted from 0. Check that batch, and the weights before the site"
    )
