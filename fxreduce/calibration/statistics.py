"""The statistics of one rectifier's channels, and what is computed from them.

Counts are exact integers, moments are float64. Both can be merged over batches, workers and ranks
in any order.

The state of a neuron is ON where its pre-activation z is positive and OFF where it is negative.
Entropy (EASIER, ECML PKDD 2024; NEPENTHE, arXiv 2404.16890): p is how often a channel is ON, taken
over samples and positions together, H = −p·log2(p) − (1 − p)·log2(1 − p) in bits, and a site's
entropy is the mean of H over its channels. `paper` leaves z = 0 out of p and pools all batches.
`easier-code`, the rule of EASIER's published code, counts z = 0 as ON, takes H of each mini-batch
by itself and averages over the mini-batches. `egp-code`, that of EGP's published code (ICCV
workshops 2023), does the same but counts z = 0 as OFF.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fxreduce.errors import CalibrationError

VARIANTS = ("paper", "easier-code", "egp-code")
# Share of the squared mean below which a variance is rounding: float32's epsilon, squared.
_ROUNDING = 2.0**-46


@dataclass(frozen=True)
class Moments:
    """First and second moments of pre-activation z and output, each float64 [C].

    Attributes:
        count: values per channel.
        mean_z: mean of z.
        m2_z: sum of squared deviations of z from its mean.
        mean_out: mean of the output.
        m2_out: sum of squared deviations of the output from its mean.
        c_z_out: sum of products of both deviations.
    """

    count: int
    mean_z: Tensor
    m2_z: Tensor
    mean_out: Tensor
    m2_out: Tensor
    c_z_out: Tensor

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        z, out = other.mean_z - self.mean_z, other.mean_out - self.mean_out
        between = self.count * share
        return Moments(
            count,
            self.mean_z + z * share,
            self.m2_z + other.m2_z + z * z * between,
            self.mean_out + out * share,
            self.m2_out + other.m2_out + out * out * between,
            self.c_z_out + other.c_z_out + z * out * between,
        )


@dataclass(frozen=True)
class ChannelStatistics:
    """What was seen of each channel of a site. Nothing here is changed in place.

    Attributes:
        on: int64 [C], how many z were positive.
        off: int64 [C], how many were negative.
        zero: int64 [C], how many were 0 or −0.
        batch_entropy: float64 [C], the sum over mini-batches of a channel's `easier-code` entropy.
        batches: how many mini-batches were seen; empty ones do not count.
        moments: of z and output, where they were taken.
        batch_entropy_strict: float64 [C], as `batch_entropy`, of a channel's `egp-code` entropy.
    """

    on: Tensor
    off: Tensor
    zero: Tensor
    batch_entropy: Tensor
    batches: int
    moments: Moments | None = None
    batch_entropy_strict: Tensor | None = None

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """The statistics of both sets of batches together; neither is changed.

        Raises:
            CalibrationError: the numbers of channels differ, or only one of both has moments.
        """
        if self.on.shape != other.on.shape:
            raise CalibrationError(
                "statistics can be merged for equal numbers of channels; seen: "
                f"{len(self.on)} and {len(other.on)}"
            )
        if (self.moments is None) != (other.moments is None):
            raise CalibrationError(
                "statistics with moments cannot be merged with statistics without; observe both "
                "with the same options"
            )
        mine, theirs = self.batch_entropy_strict, other.batch_entropy_strict
        return ChannelStatistics(
            self.on + other.on,
            self.off + other.off,
            self.zero + other.zero,
            self.batch_entropy + other.batch_entropy,
            self.batches + other.batches,
            self.moments.merge(other.moments) if self.moments and other.moments else None,
            None if mine is None or theirs is None else mine + theirs,
        )

    @property
    def on_probability(self) -> Tensor:
        """float64 [C]: how often a non-zero z is positive; 0 where all were zero."""
        on = self.on.double()
        return on / (self.on + self.off).clamp(min=1)

    def channel_entropy(self, variant: str = "paper") -> Tensor:
        """float64 [C]: entropy of each channel's state, in bits.

        Raises:
            CalibrationError: the variant is not one of `VARIANTS`, or was not taken.
        """
        require_variant(variant)
        if variant == "paper":
            return binary_entropy(self.on_probability)
        total = self.batch_entropy if variant == "easier-code" else self.batch_entropy_strict
        if total is None:
            raise CalibrationError(f"these statistics hold no {variant!r} entropy; measure again")
        return total / max(self.batches, 1)

    def entropy(self, variant: str = "paper") -> float:
        """Entropy of the site: the mean over its channels, in bits; 0 for a site without any."""
        entropy = self.channel_entropy(variant)
        return float(entropy.mean()) if len(entropy) else 0.0

    def affine_fit(self) -> tuple[Tensor, Tensor]:
        """The affine map a·z + b of each channel that fits the output best, by least squares.

        Returns:
            a and b, float64 [C]. Where z does not vary, a = 0 and b is the mean output.

        Raises:
            CalibrationError: the moments were not taken.
        """
        moments = self.required_moments()
        varies = _varies(moments.m2_z, moments.mean_z, moments.count)
        slope = (moments.c_z_out / moments.m2_z.masked_fill(~varies, 1)) * varies
        return slope, moments.mean_out - slope * moments.mean_z

    def residual(self) -> Tensor:
        """float64 [C]: the share of the output's variance that no affine map of z explains.

        Between 0 and 1; 0 where the output does not vary.

        Raises:
            CalibrationError: the moments were not taken.
        """
        moments = self.required_moments()
        varies = _varies(moments.m2_z, moments.mean_z, moments.count)
        varies &= _varies(moments.m2_out, moments.mean_out, moments.count)
        product = (moments.m2_z * moments.m2_out).masked_fill(~varies, 1)
        return (1 - moments.c_z_out**2 / product).clamp(0, 1) * varies

    def pooled_residual(self) -> float:
        """The share of the variance of all channels' outputs that no affine map of z explains.

        Unexplained over all variance, each summed over the channels. Between 0 and 1; 0 where no
        output varies.

        Raises:
            CalibrationError: the moments were not taken.
        """
        variance = self.required_moments().m2_out
        total = float(variance.sum())
        return float((self.residual() * variance).sum()) / total if total > 0 else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors by name, to be sent or saved."""
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        moments = state.pop("moments")
        if moments is not None:
            state |= {each.name: getattr(moments, each.name) for each in fields(moments)}
        return {name: torch.as_tensor(value) for name, value in state.items() if value is not None}

    @classmethod
    def from_tensors(cls, state: Mapping[str, Tensor]) -> ChannelStatistics:
        """The statistics that `tensors` was called on."""
        moments = None
        if "count" in state:
            names = [each.name for each in fields(Moments)[1:]]
            moments = Moments(int(state["count"]), *(state[name] for name in names))
        return cls(
            state["on"],
            state["off"],
            state["zero"],
            state["batch_entropy"],
            int(state["batches"]),
            moments,
            state.get("batch_entropy_strict"),
        )

    def required_moments(self) -> Moments:
        """The moments.

        Raises:
            CalibrationError: they were not taken.
        """
        if self.moments is None:
            raise CalibrationError(
                "this needs the moments of pre-activation and output; observe with moments=True"
            )
        return self.moments


def require_variant(variant: str) -> None:
    """Check the name of a variant of the entropy.

    Raises:
        CalibrationError: it is not one of `VARIANTS`.
    """
    if variant not in VARIANTS:
        raise CalibrationError(
            f"the entropy's variant is one of {', '.join(map(repr, VARIANTS))}; seen: {variant!r}"
        )


def binary_entropy(p: Tensor) -> Tensor:
    """−p·log2(p) − (1 − p)·log2(1 − p) in bits, 0 at p = 0 and 1; float64, of p's shape."""
    p = p.double()
    nats: Tensor = -torch.xlogy(p, p) - torch.special.xlog1py(1 - p, -p)
    return nats / math.log(2)


def _varies(m2: Tensor, mean: Tensor, count: int) -> Tensor:
    return m2 > _ROUNDING * count * mean**2
