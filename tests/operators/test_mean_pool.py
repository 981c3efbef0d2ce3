"""Mean pooling is a depthwise convolution, and merges as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close
from exactness import assert_same_map, random
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS, convs, images, windows

from fxreduce.operators.affine import Conv, Refusal, apply
from fxreduce.operators.compose import compose
from fxreduce.operators.pooling import mean_pool

POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@given(st.data(), st.integers(1, 3), st.sampled_from(CHANNELS), st.none() | st.integers(1, 5))
def test_it_computes_what_torchs_pooling_does(
    data: st.DataObject, rank: int, channels: int, divisor: int | None
) -> None:
    window = data.draw(windows(rank))
    x = data.draw(images(channels, rank))
    divided = {} if rank == 1 else {"divisor_override": divisor}
    operator = mean_pool(channels, **window, divisor=divided.get("divisor_override"))
    try:
        expected = POOLS[rank - 1](x, *window.values(), **divided)
    except RuntimeError:  # the input is smaller than the window
        return
    assert_close(expected, apply(operator, x))


@given(st.data(), st.integers(1, 3), st.sampled_from(CHANNELS))
def test_it_merges_with_what_stands_before_and_behind(
    data: st.DataObject, rank: int, channels: int
) -> None:
    first = data.draw(convs(rank, channels, transposed=False))
    pool = mean_pool(first.out_channels, **data.draw(windows(rank)))
    last = data.draw(convs(rank, first.out_channels, transposed=False))
    x = data.draw(images(channels, rank))
    before, behind = compose(first, pool), compose(pool, last)
    if not pool.is_padded:
        assert isinstance(before, Conv)
    if not last.is_padded:
        assert isinstance(behind, Conv)
    if not isinstance(before, Refusal):
        assert_same_map(before, [first, pool], x)
    if not isinstance(behind, Refusal):
        inner = data.draw(images(first.out_channels, rank))
        assert_same_map(behind, [pool, last], inner)


def test_a_pooling_behind_a_convolution_is_the_mean_of_its_shifted_kernels() -> None:
    f = Conv(torch.tensor([[[4.0, 8]]]), torch.tensor([3.0]))
    merged = compose(f, mean_pool(1, (2,), (2,)))
    assert isinstance(merged, Conv)
    assert merged.bias is not None
    assert merged.weight.tolist() == [[[2, 6, 4]]]
    assert (merged.bias.tolist(), merged.stride) == ([3], (2,))


def test_a_padded_pooling_behind_a_bias_counts_less_of_it_at_the_border() -> None:
    f, g = Conv(random(2, 2, 1), torch.tensor([6.0, 60])), mean_pool(2, (3,), (1,), (1,))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    zeros = torch.zeros(1, 2, 3, dtype=torch.float64)
    assert apply(merged, zeros).tolist() == [[[4, 6, 4], [40, 60, 40]]]


def test_the_channels_of_a_pooling_stay_apart() -> None:
    merged = compose(Conv(random(6, 2, 1, 1), groups=3), mean_pool(6, (2, 2), (2, 2)))
    assert isinstance(merged, Conv)
    assert merged.groups == 3
    assert_close(mean_pool(3, (2,), (2,)).weight, torch.full((3, 1, 2), 0.5).double())
