"""Every hypothesis strategy of the tests: operators, their inputs, and random models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, ScaleShift

CHANNELS = (1, 2, 3, 4, 6)
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def tensors(draw: DrawFn, *shape: int) -> Tensor:
    """Standard normal numbers in float64; hypothesis shrinks their seed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def per_axis(rank: int, low: int, high: int) -> SearchStrategy[tuple[int, ...]]:
    """One integer for each spatial axis."""
    return st.tuples(*(st.integers(low, high) for _ in range(rank)))


def ranks() -> SearchStrategy[int]:
    return st.integers(0, 3)


@st.composite
def scale_shifts(draw: DrawFn, rank: int, channels: int) -> ScaleShift:
    """A batch-norm in eval; a third of them without a shift."""
    shift = draw(tensors(channels)) * draw(st.sampled_from((1.0, 1.0, 0.0)))
    return ScaleShift(draw(tensors(channels)), shift, rank)


@st.composite
def groups_and_width(draw: DrawFn, channels: int) -> tuple[int, int]:
    """A number of groups that divides `channels`, and output channels that it divides too."""
    groups = draw(st.sampled_from([n for n in CHANNELS if channels % n == 0]))
    return groups, draw(st.sampled_from([n for n in CHANNELS if n % groups == 0]))


@st.composite
def convs(draw: DrawFn, rank: int, channels: int, *, transposed: bool | None = None) -> Conv:
    """Any convolution, Linear or transposed convolution of a rank on so many input channels."""
    groups, width = (
        draw(groups_and_width(channels)) if rank else (1, draw(st.sampled_from(CHANNELS)))
    )
    if transposed is None:
        transposed = rank > 0 and draw(st.integers(0, 5)) == 0
    kernel = draw(st.one_of(st.just((1,) * rank), per_axis(rank, 1, 4 if rank < 3 else 2)))
    stride = draw(per_axis(rank, 1, 3))
    dilation = draw(per_axis(rank, 1, 3))
    padding = draw(st.one_of(st.just((0,) * rank), per_axis(rank, 0, 3)))
    options: dict[str, Any] = {}
    if transposed:
        padding = tuple(
            min(p, d * (k - 1)) for p, d, k in zip(padding, dilation, kernel, strict=True)
        )
        options["output_padding"] = tuple(
            min(max(s, d) - 1, 1) for s, d in zip(stride, dilation, strict=True)
        )
        shape = (channels, width // groups, *kernel)
    else:
        options["padding_mode"] = draw(st.sampled_from(MODES)) if rank else "zeros"
        shape = (width, channels // groups, *kernel)
    return Conv(
        draw(tensors(*shape)),
        draw(st.none() | tensors(width)),
        stride,
        padding,
        dilation,
        groups,
        transposed=transposed,
        **options,
    )


@st.composite
def operators(draw: DrawFn, rank: int, channels: int) -> Operator:
    if draw(st.integers(0, 3)) == 0:
        return draw(scale_shifts(rank, channels))
    return draw(convs(rank, channels))


@st.composite
def chains(draw: DrawFn, length: int) -> list[Operator]:
    """Operators of one rank, each reading as many channels as the one before writes."""
    rank, channels = draw(ranks()), draw(st.sampled_from(CHANNELS))
    chain: list[Operator] = []
    for _ in range(length):
        chain.append(draw(operators(rank, channels)))
        channels = chain[-1].out_channels
    return chain


@st.composite
def images(draw: DrawFn, channels: int, rank: int, largest: int = 9) -> Tensor:
    """Inputs of a spatial rank: tiny, smaller than a kernel, and not square ones among them.

    Of rank 0: tokens with a few leading axes.
    """
    if rank == 0:
        leading = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        return draw(tensors(*leading, channels))
    size = draw(per_axis(rank, 1, largest if rank < 3 else 5))
    return draw(tensors(draw(st.integers(1, 2)), channels, *size))


@st.composite
def parallel_convs(draw: DrawFn) -> tuple[Conv, Conv]:
    """Two convolutions that read and write the same shapes: same stride, same growth."""
    rank, channels = draw(ranks()), draw(st.sampled_from(CHANNELS))
    groups, width = (
        draw(groups_and_width(channels)) if rank else (1, draw(st.sampled_from(CHANNELS)))
    )
    other = draw(st.sampled_from([n for n in CHANNELS if channels % n == 0 == width % n]))
    stride = draw(per_axis(rank, 1, 2))
    mode = draw(st.sampled_from(MODES)) if rank else "zeros"
    growths = draw(st.tuples(*(st.integers(-3, 2) for _ in range(rank))))

    def conv(groups: int) -> Conv:
        axes = [draw(st.sampled_from(_windows(growth))) for growth in growths]
        kernel, dilation, padding = zip(*axes, strict=True) if axes else ((), (), ())
        return Conv(
            draw(tensors(width, channels // groups, *kernel)),
            draw(st.none() | tensors(width)),
            stride,
            padding,
            dilation,
            groups,
            mode,
        )

    return conv(groups), conv(other if rank else 1)


def _windows(growth: int) -> Sequence[tuple[int, int, int]]:
    """(kernel, dilation, padding) of one axis with 2 p - d (k - 1) = growth."""
    found = []
    for kernel, dilation in product(range(1, 5), range(1, 4)):
        twice = growth + dilation * (kernel - 1)
        if twice >= 0 and twice % 2 == 0:
            found.append((kernel, dilation, twice // 2))
    return found
