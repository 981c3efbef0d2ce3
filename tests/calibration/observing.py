"""What the tests of observers share: pre-activations of every layout, and what to expect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from fxreduce.calibration import grid
from fxreduce.calibration.batch_norm import BatchNorm
from fxreduce.calibration.fill import filling
from fxreduce.calibration.observer import Observer
from fxreduce.calibration.statistics import ChannelStatistics

RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "strided")
SPECIAL = (0.0, -0.0, 1e-45, -1e-45, 5e-324, 1e-39, -1e-39, 2.0**-22, -(2.0**-34), 6e4, -6e4, 6.0)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a few hundred values are cut into several blocks, and long rows into parts."""
    monkeypatch.setattr(grid, "BLOCK", 512)
    monkeypatch.setattr(grid, "LONGEST", 40)


@st.composite
def pre_activations(draw: DrawFn) -> tuple[Tensor, int]:
    """A tensor of any layout and dtype, zeros and subnormal numbers in it, and its channel axis."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    if draw(st.booleans()):
        shape[-1] = draw(st.sampled_from((32, 49, 64, 101, 120)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    z = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    special = torch.randint(len(SPECIAL), shape, generator=generator)
    chosen = torch.rand(shape, generator=generator) < draw(st.sampled_from((0, 0.5, 1)))
    z = torch.where(chosen, torch.tensor(SPECIAL, dtype=z.dtype)[special], z)
    z = z.to(draw(st.sampled_from(DTYPES)))
    channel_axis = draw(st.integers(-z.dim(), -1))
    return laid_out(z, draw(st.sampled_from(LAYOUTS)), channel_axis), channel_axis


def laid_out(z: Tensor, layout: str, channel_axis: int = -3) -> Tensor:
    """The same values in another layout: contiguous, channels last in memory, or with gaps."""
    if layout == "channels_last":
        return z.movedim(channel_axis, -1).contiguous().movedim(-1, channel_axis)
    return torch.stack([z, z], -1)[..., 0] if layout == "strided" else z


def copied(z: Tensor) -> Tensor:
    """A copy with the same strides."""
    return torch.empty_strided(z.shape, z.stride(), dtype=z.dtype).copy_(z)


def bits(z: Tensor) -> Tensor:
    return z.contiguous().view(BITS[z.element_size()])


def counts(z: Tensor, channel_axis: int) -> list[Tensor]:
    """How many values of each channel are positive, negative and zero."""
    values = z.movedim(channel_axis, 0).flatten(1) if z.dim() > 1 else z.unsqueeze(1)
    return [(values > 0).sum(1), (values < 0).sum(1), (values == 0).sum(1)]


def assert_counts(seen: ChannelStatistics, expected: Sequence[Tensor]) -> None:
    for found, count in zip((seen.on, seen.off, seen.zero), expected, strict=True):
        assert found.dtype == torch.int64
        assert torch.equal(found, count)


def observer_of(
    kind: str,
    channel_axis: int = -3,
    *,
    moments: bool = False,
    in_place: bool = False,
    norm: BatchNorm | None = None,
) -> Observer:
    """An observer that replaces the rectifier's call where it can, and a batch-norm's before it."""
    return Observer(
        "a.b",
        channel_axis,
        rectify=RECTIFIERS[kind],
        moments=moments,
        fill=filling(kind),
        in_place=in_place,
        norm=norm,
    )


@torch.no_grad()
def observed(
    *batches: Tensor,
    channel_axis: int = -3,
    kind: str = "relu",
    moments: bool = False,
    in_place: bool = False,
) -> Observer:
    """An observer that has seen batches."""
    made = observer_of(kind, channel_axis, moments=moments, in_place=in_place)
    for z in batches:
        made(z)
    return made
