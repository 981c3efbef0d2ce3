"""Observers that compute the batch-norm before their rectifier, too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from observing import (
    LAYOUTS,
    RECTIFIERS,
    assert_counts,
    bits,
    copied,
    counts,
    laid_out,
    observed,
    observer_of,
    small_blocks,
)
from torch import Tensor

from fxreduce.calibration.batch_norm import BatchNorm
from fxreduce.errors import CalibrationError

__all__ = ["small_blocks"]

BLOCKWISE = ("relu", "relu6", "hardtanh", "leaky_relu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def batch_norm(channels: int, dtype: torch.dtype, affine: bool = True) -> BatchNorm:
    mean, weight, bias = torch.randn(3, channels, dtype=dtype).unbind()
    variance = torch.rand(channels, dtype=dtype) + 0.1
    given = (weight, bias) if affine else (None, None)
    return BatchNorm(mean, variance, *given, 1e-3)


@st.composite
def inputs(draw: st.DrawFn) -> Tensor:
    """The input of a batch-norm, in any layout."""
    shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    if draw(st.booleans()):
        shape[-1] = draw(st.sampled_from((32, 49, 101, 120)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(
        draw(st.sampled_from(DTYPES))
    )
    return laid_out(x, draw(st.sampled_from(LAYOUTS)), 1 - x.dim())


@pytest.mark.usefixtures("small_blocks")
@given(inputs(), st.sampled_from(BLOCKWISE), *[st.booleans()] * 4, st.integers(1, 3))
def test_outputs_and_statistics_are_those_of_the_calls_one_after_the_other(
    x: Tensor,
    kind: str,
    in_place: bool,
    moments: bool,
    affine: bool,
    other_axis: bool,
    threads: int,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        norm = batch_norm(x.shape[1], x.dtype, affine)
        z = norm(x)
        channel_axis = -1 if other_axis else 1 - x.dim()
        made = observer_of(kind, channel_axis, moments=moments, in_place=in_place, norm=norm)
        given_to = copied(x)
        with torch.no_grad():
            output = made(given_to)
        assert torch.equal(bits(output), bits(RECTIFIERS[kind](z)))
        assert in_place or torch.equal(bits(given_to), bits(x))
        assert_counts(made.statistics, counts(z, channel_axis))
        expected = observed(z, channel_axis=channel_axis, kind=kind, moments=moments).statistics
        for name, value in expected.tensors().items():
            torch.testing.assert_close(
                made.statistics.tensors()[name], value, rtol=1e-4, atol=1e-3, equal_nan=True
            )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(4, 8, 112, 112), (8, 256, 7, 7), (2, 3, 127, 131), (700, 90)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("moments", [False, True])
def test_many_blocks_have_the_bits_of_one_batch_norm(
    shape: tuple[int, ...], channels_last: bool, moments: bool
) -> None:
    x = torch.randn(shape)
    if channels_last:
        x = laid_out(x, "channels_last", 1 - x.dim())
    norm = batch_norm(shape[1], x.dtype)
    expected = norm(x)
    made = observer_of("relu6", 1 - x.dim(), moments=moments, in_place=True, norm=norm)
    with torch.no_grad():
        output = made(x)
    assert output is x
    assert torch.equal(bits(output), bits(expected.clamp(0, 6)))
    assert_counts(made.statistics, counts(expected, 1 - x.dim()))


def test_gradients_pass_through_the_batch_norm_too() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    norm = batch_norm(3, x.dtype)
    for in_place in (False, True):
        made = observer_of("relu", -3, in_place=in_place, norm=norm)
        (found,) = torch.autograd.grad(made(x * 2).square().sum(), x)
        (expected,) = torch.autograd.grad(norm(x * 2).relu().square().sum(), x)
        assert torch.equal(found, expected)
        assert_counts(made.statistics, counts(norm(x * 2), -3))


def test_an_empty_batch_passes() -> None:
    made = observer_of("relu", norm=batch_norm(3, torch.float32))
    assert made(torch.empty(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_without_a_rectifier_for_blocks_there_is_no_such_observer() -> None:
    norm = batch_norm(3, torch.float32)
    with pytest.raises(CalibrationError, match=r"the batch-norm before a\.b can be computed only"):
        observer_of("gelu", norm=norm)
