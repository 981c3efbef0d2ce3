"""An observer takes the statistics of one rectifier's pre-activation while a model runs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn

from fxreduce.calibration.grid import Grid
from fxreduce.calibration.statistics import ChannelStatistics, Moments, binary_entropy
from fxreduce.calibration.sums import (
    Fill,
    Rectify,
    Shift,
    block_counts,
    block_moments,
    whole_sums,
)
from fxreduce.errors import CalibrationError

# Batches whose sums wait to be added up together: entropies of many cost no more than of one.
_WAITING = 32
# A mean further from zero than this many standard deviations is subtracted before squaring.
_FAR = 16.0
# How many values per channel that mean is estimated from, at least.
_SAMPLE = 4096


class Observer(nn.Module):
    """Counts the signs of each channel of a pre-activation, and takes moments if wanted.

    An observer that `replaces` the rectifier's call returns what the call returns, bit for bit,
    and writes over its input where the call does. Given `fill`, it rectifies every block while it
    has it in cache, so that observing and rectifying share one pass over memory. Any other observer
    returns its input, and the call follows it. Gradients pass through an observer.

    Args:
        site: name of the rectifier's call.
        channel_axis: counted from the right: -3 for (N, C, H, W), -1 for (N, L, C) and (N, C).
        rectify: the rectifier as a function that overwrites nothing; needed to take moments and to
            replace the call. Where `in_place` is set and there is no `fill`, it is called on parts
            of the pre-activation and must be elementwise.
        moments: whether to take the moments of pre-activation and output.
        fill: the rectifier for blocks, from `fxreduce.calibration.fill.filling`.
        in_place: whether the call overwrites its input.

    Attributes:
        replaces: whether the observer takes the place of the call.
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
    ) -> None:
        super().__init__()
        if moments and rectify is None:
            raise CalibrationError(
                f"the moments of {site} need its rectifier; pass rectify, or moments=False"
            )
        self.site = site
        self.channel_axis = channel_axis
        self.moments = moments
        self.in_place = in_place
        self.replaces = rectify is not None and (fill is not None or not in_place)
        # In a tuple it is no child: the model owns its rectifiers.
        self._rectify: tuple[Rectify, ...] = () if rectify is None else (rectify,)
        self._fill = fill if self.replaces else None
        self.reset()

    def reset(self) -> None:
        """Forget all that was seen."""
        self._waiting: list[tuple[Tensor, int]] = []
        self._latest: Tensor | None = None
        self._totals: Tensor | None = None  # sums over batches; the last row is their entropies
        self._batches = 0
        self._count = 0  # values per channel
        self._shift: Shift | None = None

    def forward(self, z: Tensor) -> Tensor:
        """Observe a batch.

        Raises:
            CalibrationError: it has no such channel axis, another number of channels than the
                batches before, or no floating-point numbers.
        """
        self._check(z)
        if torch.is_grad_enabled() and z.requires_grad:
            with torch.no_grad():
                self._whole(z.detach())
            if not self.replaces:
                return z
            return z.copy_(self._rectified(z.clone())) if self.in_place else self._rectified(z)
        with torch.no_grad():
            if z.device.type == "cpu" and (grid := Grid.of(z, self.channel_axis)):
                return self._blocked(z, grid)
            self._whole(z)
            if self._fill is not None and self.in_place:
                self._fill(z, z)
                return z
            return self._rectified(z) if self.replaces else z

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
            self._totals[-1].clone(),
            self._batches,
            self._moments(self._totals[2:-1]) if self.moments else None,
        )

    def _check(self, z: Tensor) -> None:
        if not z.is_floating_point() or z.dim() < -self.channel_axis:
            raise CalibrationError(
                f"the pre-activation of {self.site} must be floating-point and have a channel axis "
                f"{self.channel_axis}; seen: {z.dtype} of shape {tuple(z.shape)}"
            )
        channels = z.shape[self.channel_axis]
        if self._latest is not None and self._latest.shape[1] != channels:
            raise CalibrationError(
                f"{self.site} must have the same channels in every batch; seen: "
                f"{self._latest.shape[1]}, then {channels} in shape {tuple(z.shape)}. Batches of "
                "other sizes need the channel axis to be another one"
            )

    def _blocked(self, z: Tensor, grid: Grid) -> Tensor:
        output = None
        if self._fill is not None:
            output = z if self.in_place else torch.empty_like(z)
        elif self.replaces:
            output = self._rectified(z)
        if not self.moments:
            self._add(z, block_counts(z, grid, output, self._fill))
        else:
            shift = self._shift_for(z)
            same = output
            if output is not None and output.stride() != z.stride():
                same = torch.empty_like(z).copy_(output)
            self._add(z, block_moments(z, grid, same, self._fill, self._rectified, shift))
        return z if output is None else output

    def _whole(self, z: Tensor) -> None:
        if not z.numel():
            return
        output = self._rectified(z) if self.moments else None
        shift = self._shift_for(z) if self.moments else None
        self._add(z, whole_sums(z, self.channel_axis, output, shift))

    def _rectified(self, z: Tensor) -> Tensor:
        (rectify,) = self._rectify
        return rectify(z)

    def _shift_for(self, z: Tensor) -> Shift | None:
        """The first batch decides about the shift: batches with one shift can be added."""
        if self._latest is not None:
            return self._shift
        axes = [axis for axis in range(z.dim()) if axis != z.dim() + self.channel_axis]
        per_sample = z[:1].numel() // z.shape[self.channel_axis]
        sample = z[: -(-_SAMPLE // max(per_sample, 1))] if axes else z.unsqueeze(0)
        variance, mean = torch.var_mean(_widened(sample), axes or 0, correction=0)
        if bool((mean.abs() <= _FAR * variance.sqrt()).all()):
            return None
        mean = mean.nan_to_num(0.0, 0.0, 0.0)
        aligned = mean.to(z.dtype).view(-1, *[1] * (-self.channel_axis - 1))
        self._shift = Shift(
            _widened(aligned).flatten(), _widened(self._rectified(aligned)).flatten()
        )
        return self._shift

    def _add(self, z: Tensor, sums: Tensor) -> None:
        self._latest = sums
        self._waiting.append((sums, z.numel() // z.shape[self.channel_axis]))
        if len(self._waiting) == _WAITING:
            self._add_up()

    def _add_up(self) -> None:
        if not self._waiting:
            return
        sums = torch.stack([each for each, _ in self._waiting])
        if not bool(sums.isfinite().all()):
            for number, (each, _) in enumerate(self._waiting, self._batches):
                _raise_unless_finite(self.site, each, number)
        counts = torch.tensor([[n] for _, n in self._waiting], dtype=sums.dtype, device=sums.device)
        entropies = binary_entropy((counts - sums[:, 1]) / counts)
        added = torch.cat([sums, entropies.unsqueeze(1)], 1).sum(0)
        self._totals = added if self._totals is None else self._totals + added
        self._batches += len(self._waiting)
        self._count += sum(n for _, n in self._waiting)
        self._waiting.clear()

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
    """Check what observers saw last, with one synchronisation for all of them on a device.

    Raises:
        CalibrationError: there were values that are not finite; names the batch and the first site.
    """
    seen = [(each.site, each._latest) for each in observers if each._latest is not None]
    for _, group in groupby(seen, key=lambda each: each[1].device):
        latest = list(group)
        if not bool(torch.cat([sums.flatten() for _, sums in latest]).sum().isfinite()):
            for site, sums in latest:
                _raise_unless_finite(site, sums, batch)


def _raise_unless_finite(site: str, sums: Tensor, batch: int) -> None:
    """`sums` are those of one batch."""
    wrong = ~sums[:2].isfinite().all(0)
    if bool(wrong.any()):
        raise CalibrationError(
            f"the pre-activation of {site} must be finite; in batch {batch} there is NaN or "
            f"infinity in {int(wrong.sum())} of {len(wrong)} channels. Check that batch, and the "
            "weights before that site"
        )
    if not bool(sums.isfinite().all()):
        raise CalibrationError(
            f"the moments of {site} do not fit in {torch.float32} in batch {batch}: its "
            "pre-activation is too large. Scale the weights before it, or calibrate in float64"
        )


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
