"""Padding with zeros is a depthwise convolution, and merges into the one that reads it."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close
from exactness import PADDED, assert_same_map, random
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS, convs, images, sides

from fxreduce.operators.affine import Conv, Refusal, apply
from fxreduce.operators.compose import compose
from fxreduce.operators.pad import zero_pad


@given(st.data(), st.integers(1, 3), st.sampled_from(CHANNELS))
def test_it_computes_what_torchs_padding_does(
    data: st.DataObject, rank: int, channels: int
) -> None:
    ends = data.draw(sides(rank))
    x = data.draw(images(channels, rank, 4))
    expected = F.pad(x, [end for side in reversed(ends) for end in side])
    assert_close(expected, apply(zero_pad(channels, ends), x))


@given(st.data(), st.integers(1, 3), st.sampled_from(CHANNELS))
def test_it_merges_into_every_convolution_that_pads_zeros_or_nothing_itself(
    data: st.DataObject, rank: int, channels: int
) -> None:
    ends = data.draw(sides(rank))
    pad, conv = zero_pad(channels, ends), data.draw(convs(rank, channels, transposed=False))
    merged = compose(pad, conv)
    if isinstance(merged, Refusal):
        assert PADDED in merged.reason
        assert conv.is_padded
        assert conv.padding_mode != "zeros"
        return
    assert_same_map(merged, [pad, conv], data.draw(images(channels, rank)))


def test_a_pad_and_a_convolution_are_the_padded_convolution() -> None:
    conv = Conv(random(4, 2, 3, 3), random(4), stride=(2, 2), groups=2)
    merged = compose(zero_pad(4, ((1, 1), (2, 2))), conv)
    assert isinstance(merged, Conv)
    assert torch.equal(merged.weight, conv.weight)
    assert (merged.padding, merged.stride, merged.groups) == ((1, 2), (2, 2), 2)


def test_a_pad_of_one_side_becomes_a_tap_of_zeros_on_the_other() -> None:
    conv = Conv(torch.tensor([[[1.0, 2]]]).double(), stride=(2,))
    for ends, weight, padding in (((0, 1), [0, 1, 2], 1), ((3, 1), [1, 2, 0, 0], 3)):
        merged = compose(zero_pad(1, (ends,)), conv)
        assert isinstance(merged, Conv)
        assert merged.weight.flatten().tolist() == weight
        assert (merged.padding, merged.stride) == ((padding,), (2,))
        for size in (3, 4):
            assert_same_map(merged, [zero_pad(1, (ends,)), conv], random(1, 1, size))


def test_pads_add_up() -> None:
    pad, conv = zero_pad(3, ((0, 1),)), Conv(random(3, 3, 3), padding=(1,))
    merged = compose(pad, conv)
    assert isinstance(merged, Conv)
    assert (merged.padding, merged.kernel) == ((2,), (4,))
    assert_same_map(merged, [pad, conv], random(1, 3, 2))
    refused = compose(pad, Conv(random(3, 3, 3), padding=(1,), padding_mode="circular"))
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith("the second operator pads by 1 what the first, a 2 kernel")


def test_a_bias_before_a_pad_ends_where_the_input_ends() -> None:
    f, pad = Conv(random(2, 2, 1), torch.tensor([5.0, 7])), zero_pad(2, ((2, 1),))
    merged = compose(f, pad)
    assert isinstance(merged, Conv)
    zeros = torch.zeros(1, 2, 2, dtype=torch.float64)
    assert apply(merged, zeros).tolist() == [[[0, 0, 5, 5, 0], [0, 0, 7, 7, 0]]]
