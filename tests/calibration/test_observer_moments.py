from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from observing import (
    LAYOUTS,
    RECTIFIERS,
    assert_counts,
    counts,
    laid_out,
    observed,
    observer_of,
    pre_activations,
    small_blocks,
)
from torch import Tensor, nn

from fxreduce.calibration.observer import Observer
from fxreduce.errors import CalibrationError

__all__ = ["small_blocks"]


@pytest.mark.parametrize("kind", sorted(RECTIFIERS))
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [0.0, 3.0, -500.0, 500.0])
def test_moments_are_those_of_all_values_together(
    kind: str, in_place: bool, dtype: torch.dtype, layout: str, mean: float
) -> None:
    if dtype == torch.bfloat16 and abs(mean) > 3:
        mean /= 100  # it has three digits
    batches = [torch.randn(n, 3, 12, 12) * torch.tensor([1, 2, 4]).view(3, 1, 1) for n in (4, 1, 7)]
    values = []
    made = observer_of(kind, moments=True, in_place=in_place)
    for batch in batches:
        z = laid_out((batch + mean).to(dtype), layout)
        values.append(z.clone())
        with torch.no_grad():
            made(z)
    z = torch.cat(values).movedim(1, 0).flatten(1)
    out = RECTIFIERS[kind](z).double()
    z = z.double()
    found = made.statistics.moments
    assert found is not None
    assert found.count == z.shape[1]
    dz, dout = z - z.mean(1, True), out - out.mean(1, True)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.mean_z, z.mean(1), rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(found.mean_out, out.mean(1), rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(found.m2_z, (dz**2).sum(1), rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(found.m2_out, (dout**2).sum(1), rtol=tolerance, atol=1e-3)
    torch.testing.assert_close(found.c_z_out, (dz * dout).sum(1), rtol=tolerance, atol=1e-1)


def test_a_constant_channel_has_no_variance_at_all() -> None:
    z = torch.randn(8, 3, 30, 30)
    z[:, 1] = 0.1
    z[:, 2] = -1000.1
    moments = observed(z, moments=True).statistics.moments
    assert moments is not None
    assert moments.m2_z[1:].tolist() == [0, 0]
    slope, shift = observed(z, moments=True).statistics.affine_fit()
    assert slope[1:].tolist() == [0, 0]
    assert shift[1:].tolist() == pytest.approx([0.1, 0])


def test_moments_that_overflow_are_an_error_and_counts_alone_are_not() -> None:
    z = torch.full((2, 3, 8, 8), 1e30)
    z[0] = -1e30
    assert observed(z).statistics.entropy() == 1
    with pytest.raises(CalibrationError, match=r"must fit in torch\.float32"):
        _ = observed(z, moments=True).statistics
    assert observed(z.double(), moments=True).statistics.entropy() == 1


def test_a_rectifier_with_a_weight_per_channel_is_observed() -> None:
    prelu = nn.PReLU(6)
    nn.init.uniform_(prelu.weight)
    for mean in (0.0, 100.0):
        z = torch.randn(4, 6, 8, 8) + mean
        for memory in (torch.contiguous_format, torch.channels_last):
            laid_out = z.to(memory_format=memory)
            made = Observer("site", -3, rectify=prelu, moments=True)
            with torch.no_grad():
                assert torch.equal(made(laid_out), prelu(z))
                out = prelu(z).double()
            moments = made.statistics.moments
            assert moments is not None
            torch.testing.assert_close(moments.mean_out, out.mean((0, 2, 3)))


@pytest.mark.usefixtures("small_blocks")
@given(st.lists(pre_activations(), min_size=1, max_size=4), st.integers(1, 5), st.booleans())
def test_batches_of_any_sizes_add_up(
    batches: list[tuple[Tensor, int]], channels: int, moments: bool
) -> None:
    made = observer_of("relu", -2, moments=moments)
    expected = [torch.zeros(channels, dtype=torch.int64)] * 3
    parts = []
    for z, _ in batches:
        z = z.reshape(-1)[: z.numel() // channels * channels].reshape(1, channels, -1)
        if z.numel():
            expected = [a + b for a, b in zip(expected, counts(z, -2), strict=True)]
            parts.append(observed(z, channel_axis=-2, moments=moments).statistics)
        made(z)
    if not parts:
        with pytest.raises(CalibrationError, match="has seen no values"):
            _ = made.statistics
        return
    seen = made.statistics
    assert_counts(seen, expected)
    assert seen.batches == len(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    for name, value in merged.tensors().items():
        torch.testing.assert_close(seen.tensors()[name], value, rtol=1e-4, atol=1e-2)
