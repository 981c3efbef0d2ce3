from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxreduce.calibration.observer import Observer
from fxreduce.calibration.statistics import ChannelStatistics, Moments, binary_entropy
from fxreduce.errors import CalibrationError


def counted(on: list[int], off: list[int], zero: list[int] | None = None) -> ChannelStatistics:
    return ChannelStatistics(
        torch.tensor(on),
        torch.tensor(off),
        torch.tensor(zero or [0] * len(on)),
        torch.zeros(len(on), dtype=torch.float64),
        1,
    )


def h(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def pooled(z: Tensor, out: Tensor) -> Moments:
    """The moments of [values, C], all at once."""
    mean_z, mean_out = z.mean(0), out.mean(0)
    dz, dout = z - mean_z, out - mean_out
    return Moments(len(z), mean_z, (dz**2).sum(0), mean_out, (dout**2).sum(0), (dz * dout).sum(0))


def with_moments(z: Tensor, out: Tensor) -> ChannelStatistics:
    return ChannelStatistics(
        (z > 0).sum(0), (z < 0).sum(0), (z == 0).sum(0), z.new_zeros(z.shape[1]), 1, pooled(z, out)
    )


def test_always_on_always_off_and_all_zero_channels_have_no_entropy() -> None:
    seen = counted([9, 0, 0, 4], [0, 7, 0, 4], [0, 0, 5, 100])
    assert seen.on_probability.tolist() == [1, 0, 0, 0.5]
    assert seen.channel_entropy().tolist() == [0, 0, 0, 1]
    assert seen.entropy() == 0.25


def test_zeros_are_left_out_of_the_papers_entropy() -> None:
    assert counted([1], [3], [12]).entropy() == pytest.approx(h(0.25), abs=1e-15)


def test_the_entropy_of_rare_states_keeps_its_digits() -> None:
    n = 10**12
    expected = (math.log2(n) + 1 / math.log(2)) / n  # -p log2 p + p / ln 2, p = 1/n, to first order
    assert counted([1], [n - 1]).entropy() == pytest.approx(expected, rel=1e-9)
    assert counted([n - 1], [1]).entropy() == pytest.approx(expected, rel=1e-9)


def test_an_unknown_variant_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(CalibrationError, match=r"'paper', 'easier-code', 'egp-code'; seen: 'egpp'"):
        counted([1], [1]).channel_entropy("egpp")


def test_the_entropy_pools_positions_before_it_takes_the_logarithm() -> None:
    # Each position is always on or always off: per-position entropies would all be 0.
    z = torch.tensor([[[[1.0, -1.0]]]]).expand(6, 1, 1, 2)
    observer = Observer("site", -3, rectify=None, moments=False)
    observer(z)
    assert observer.statistics.entropy() == 1


def test_the_published_codes_entropy_is_a_mean_over_batches_and_counts_zero_as_on() -> None:
    observer = Observer("site", -1, rectify=None, moments=False)
    observer(torch.tensor([[1.0], [0.0], [-1.0], [-1.0]]))  # p = 1/2
    observer(torch.tensor([[1.0], [1.0], [-0.0], [-2.0]]))  # p = 3/4
    observer(torch.tensor([[3.0]]))  # p = 1
    seen = observer.statistics
    assert seen.batches == 3
    assert seen.entropy("easier-code") == pytest.approx((1 + h(0.75) + 0) / 3, abs=1e-15)
    assert seen.entropy("paper") == pytest.approx(h(4 / 7), abs=1e-15)


def test_a_site_without_channels_or_batches_has_no_entropy() -> None:
    assert counted([], []).entropy() == 0
    zeros = torch.zeros(2, dtype=torch.int64)
    nothing = ChannelStatistics(zeros, zeros, zeros, zeros.double(), 0)
    assert nothing.entropy("easier-code") == 0


@given(st.floats(0, 1))
def test_the_binary_entropy_is_between_zero_and_one_bit_and_symmetric(p: float) -> None:
    entropy = float(binary_entropy(torch.tensor(p, dtype=torch.float64)))
    mirrored = float(binary_entropy(torch.tensor(1 - p, dtype=torch.float64)))
    assert 0 <= entropy <= 1 + 1e-15
    assert entropy == pytest.approx(mirrored, abs=1e-12)


@given(st.lists(st.integers(1, 30), min_size=3, max_size=3), st.integers(0, 2**16))
def test_merging_is_associative_and_equals_pooling(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64) * 3 + 5
    out = z.clamp(min=0).tanh() + 100
    parts = [with_moments(a, b) for a, b in zip(z.split(sizes), out.split(sizes), strict=True)]
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    expected = with_moments(z, out)
    for merged in (left, right):
        assert merged.batches == 3
        for name, value in expected.tensors().items():
            if name != "batches":
                torch.testing.assert_close(merged.tensors()[name], value, rtol=1e-12, atol=1e-12)


def test_merging_with_nothing_seen_changes_nothing() -> None:
    z = torch.randn(20, 3, dtype=torch.float64)
    seen = with_moments(z, z.relu())
    zeros = {name: torch.zeros_like(value) for name, value in seen.tensors().items()}
    nothing = ChannelStatistics.from_tensors(zeros)
    for merged in (seen.merge(nothing), nothing.merge(seen)):
        for name, value in seen.tensors().items():
            torch.testing.assert_close(merged.tensors()[name], value, rtol=1e-15, atol=0)


def test_statistics_that_do_not_belong_together_are_not_merged() -> None:
    z = torch.randn(5, 2, dtype=torch.float64)
    with pytest.raises(CalibrationError, match="channels; seen: 2 and 3"):
        counted([1, 1], [1, 1]).merge(counted([1, 1, 1], [1, 1, 1]))
    with pytest.raises(CalibrationError, match="with statistics without"):
        with_moments(z, z).merge(counted([1, 1], [1, 1]))


@given(st.integers(2, 40), st.integers(0, 2**16))
def test_the_affine_fit_is_that_of_least_squares(values: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(values, 3, generator=generator, dtype=torch.float64)
    out = torch.nn.functional.gelu(z)
    seen = with_moments(z, out)
    slope, shift = seen.affine_fit()
    for channel in range(3):
        design = np.stack([z[:, channel].numpy(), np.ones(values)], 1)
        solution, *_ = np.linalg.lstsq(design, out[:, channel].numpy(), rcond=None)
        assert [float(slope[channel]), float(shift[channel])] == pytest.approx(solution, abs=1e-7)
        left = out[:, channel].numpy() - design @ solution
        share = float((left**2).sum() / pooled(z, out).m2_out[channel])
        assert float(seen.residual()[channel]) == pytest.approx(share, abs=1e-7)


def test_always_on_channels_fit_the_identity_and_constant_ones_a_constant() -> None:
    z = torch.tensor([[1.0, -1.0, 3.1, 0.0], [2.0, -5.0, 3.1, 0.0], [4.0, -2.0, 3.1, 0.0]])
    z = z.double()
    slope, shift = with_moments(z, z.relu()).affine_fit()
    assert slope.tolist() == pytest.approx([1, 0, 0, 0])
    assert shift.tolist() == pytest.approx([0, 0, 3.1, 0])
    assert with_moments(z, z.relu()).residual().tolist() == pytest.approx([0, 0, 0, 0])


def test_what_no_affine_map_explains_is_all_residual() -> None:
    z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    assert with_moments(z, z**2).residual().tolist() == [1]


def test_a_fit_without_moments_is_an_error_that_says_how_to_take_them() -> None:
    for method in (counted([1], [1]).affine_fit, counted([1], [1]).residual):
        with pytest.raises(CalibrationError, match="moments=True"):
            method()


def test_statistics_survive_the_way_through_tensors() -> None:
    z = torch.randn(9, 2, dtype=torch.float64)
    for seen in (with_moments(z, z.relu()), counted([1, 2], [3, 4], [5, 6])):
        again = ChannelStatistics.from_tensors(seen.tensors())
        assert again.batches == seen.batches
        assert (again.moments is None) == (seen.moments is None)
        for name, value in seen.tensors().items():
            assert torch.equal(again.tensors()[name], value)
