"""Transposed convolutions are merged exactly where what they write allows it."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close
from exactness import (
    CUT_OFF,
    LEFT_OUT,
    PADDED_BESIDE,
    TOO_WIDE,
    UNEVEN,
    assert_same_map,
    expected_refusal,
    random,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CHANNELS, convs, images, parallel_transposed, transposed_pairs
from torch import Tensor

from fxreduce.operators.add import add
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, apply, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.transposed import as_ordinary, as_transposed

GEOMETRY = ("stride", "padding", "dilation", "groups", "transposed", "output_padding")


def up(weight: Tensor, bias: Tensor | None = None, stride: int = 2, **options: int) -> Conv:
    """A transposed convolution that does the same along every axis."""
    rank = weight.dim() - 2
    groups = options.pop("groups", 1)
    each = {name: (value,) * rank for name, value in options.items()}
    return Conv(weight, bias, (stride,) * rank, groups=groups, transposed=True, **each)


def merged_from(f: Operator, g: Operator) -> Conv:
    merged = compose(f, g)
    assert isinstance(merged, Conv), merged
    return merged


@settings(max_examples=settings().max_examples * 4)  # there are many kinds of pairs
@given(st.data(), transposed_pairs())
def test_a_pair_composes_exactly_where_nothing_that_is_cut_off_would_be_seen(
    data: st.DataObject, pair: tuple[Operator, Conv]
) -> None:
    merged, reason = compose(*pair), expected_refusal(*pair)
    if reason is not None:
        assert isinstance(merged, Refusal)
        assert reason in merged.reason
        return
    assert not isinstance(merged, Refusal), merged
    for largest in (7, 3):
        x = data.draw(images(pair[0].in_channels, pair[0].rank, largest))
        assert_same_map(merged, list(pair), x)


@given(transposed_pairs())
def test_composing_on_the_meta_device_tells_the_geometry_of_the_real_one(
    pair: tuple[Operator, Conv],
) -> None:
    real, planned = compose(*pair), compose(*map(on_meta, pair))
    if isinstance(planned, Refusal):
        # Nothing is known of a shift on the meta device.
        assert real == planned or UNEVEN in planned.reason
        return
    assert isinstance(real, Conv)
    assert isinstance(planned, Conv)
    assert real.weight.shape == planned.weight.shape
    assert [getattr(real, name) for name in GEOMETRY] == [
        getattr(planned, name) for name in GEOMETRY
    ]


@given(st.data(), st.integers(1, 3), st.sampled_from(CHANNELS))
def test_a_convolution_of_stride_1_is_a_transposed_one_and_the_other_way_round(
    data: st.DataObject, rank: int, channels: int
) -> None:
    conv = data.draw(convs(rank, channels))
    x = data.draw(images(channels, rank))
    ordinary, transposed = as_ordinary(conv), as_transposed(conv)
    assert_same_map(ordinary, [conv], x)
    if not isinstance(transposed, Refusal):
        assert transposed.transposed
        assert_same_map(transposed, [conv], x)
        if not conv.transposed:
            assert torch.equal(as_ordinary(transposed).weight, conv.weight)


@settings(max_examples=settings().max_examples * 2)
@given(st.data(), parallel_transposed())
def test_branches_of_one_stride_and_size_are_added_exactly(
    data: st.DataObject, pair: tuple[Conv, Conv]
) -> None:
    f, g = pair
    planned = add(on_meta(f), on_meta(g))
    for merged in (add(f, g), add(g, f)):
        assert isinstance(merged, Conv)
        assert isinstance(planned, Conv)
        assert planned.output_padding == merged.output_padding
        x = data.draw(images(f.in_channels, f.rank, 4))
        try:
            expected = apply(f, x) + apply(g, x)
        except RuntimeError:  # nothing is left of the output
            continue
        assert_close(expected, apply(merged, x))


def test_a_pointwise_behind_a_transposed_convolution_mixes_its_channels_and_its_bias() -> None:
    f = up(torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([10.0, 20]))
    g = Conv(torch.tensor([[1.0, 1], [1, -1]]).view(2, 2, 1), torch.tensor([100.0, 200]))
    merged = merged_from(f, g)
    assert merged.weight.tolist() == [[[4, 6], [-2, -2]]]
    assert merged.bias is not None
    assert merged.bias.tolist() == [130, 190]


def test_groups_keep_their_order_around_a_transposed_convolution() -> None:
    # Depthwise by 1, 2, 3, 4, then two groups that write two channels each from two.
    f = Conv(torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1), groups=4)
    g = up(torch.tensor([[1.0, 10], [2, 20], [3, 30], [4, 40]]).view(4, 2, 1), groups=2)
    before, behind = merged_from(f, g), merged_from(g, f)
    assert (before.groups, behind.groups) == (2, 2)
    assert before.weight.squeeze(2).tolist() == [[1, 10], [4, 40], [9, 90], [16, 160]]
    assert behind.weight.squeeze(2).tolist() == [[1, 20], [2, 40], [9, 120], [12, 160]]


@pytest.mark.parametrize("bias", [True, False])
def test_any_convolution_without_padding_may_stand_behind(bias: bool) -> None:
    f = up(random(3, 2, 3, 2), random(2) if bias else None, padding=1, output_padding=1)
    g = Conv(random(4, 2, 2, 3), random(4), dilation=(2, 1))
    merged = merged_from(f, g)
    assert (merged.stride, merged.padding, merged.output_padding) == ((2, 2), (3, 3), (1, 1))
    assert_same_map(merged, [f, g], random(2, 3, 4, 5))


def test_a_padded_convolution_may_stand_behind_what_crops_nothing_and_has_no_bias() -> None:
    f, g = up(random(3, 2, 2, 2)), Conv(random(4, 2, 3, 3), random(4), padding=(1, 1))
    merged = merged_from(f, g)
    assert (merged.kernel, merged.stride, merged.padding) == ((4, 4), (2, 2), (1, 1))
    assert_same_map(merged, [f, g], random(2, 3, 1, 5))


def test_a_padded_convolution_may_stand_before_one_that_writes_blocks_apart() -> None:
    f, g = Conv(random(3, 2, 3, 3), padding=(1, 1)), up(random(3, 4, 2, 2), random(4))
    merged = merged_from(f, g)
    assert (merged.kernel, merged.stride, merged.padding) == ((6, 6), (2, 2), (2, 2))
    assert_same_map(merged, [f, g], random(2, 2, 3, 1))


def test_what_is_cut_off_must_not_come_back() -> None:
    # x = 1 writes 1, 1, 1, of which the middle one stays; spread again it is 1, 0, 1, not 2, 1, 2.
    f, g = up(torch.ones(1, 1, 3), padding=1), up(torch.tensor([[[1.0, 0, 1]]]), stride=1)
    x = torch.ones(1, 1, 1)
    assert apply(g, apply(f, x)).tolist() == [[[1, 0, 1]]]
    refused = compose(f, g)
    assert isinstance(refused, Refusal)
    assert refused.reason == (
        "the first operator is cut to its output by (1,), and the second, of kernel (3,) and "
        "stride (1,), would spread the part that is cut off"
    )


@pytest.mark.parametrize(
    "before", [ScaleShift(random(2), random(2), 1), Conv(random(2, 2, 1), random(2))]
)
def test_a_shift_before_a_transposed_convolution_of_stride_1_ends_at_its_border(
    before: Operator,
) -> None:
    g = up(random(2, 3, 3), random(3), stride=1, padding=1)
    merged = merged_from(before, g)
    assert not merged.transposed
    assert merged.border is not None
    assert_same_map(merged, [before, g], random(2, 2, 4))


def test_a_scale_without_a_shift_goes_into_the_input_channels() -> None:
    f, g = ScaleShift(torch.tensor([2.0, 10]), torch.zeros(2), 1), up(torch.ones(2, 1, 2), groups=2)
    assert merged_from(f, g).weight.tolist() == [[[2, 2]], [[10, 10]]]


def test_taps_of_two_branches_meet_where_they_write_to_the_same_place() -> None:
    # Of an input at x the one writes to 2x, 2x + 1; the other to 2x - 1 .. 2x + 2.
    f, g = up(torch.full((1, 1, 2), 10.0)), up(torch.ones(1, 1, 4), padding=1)
    merged = add(f, g)
    assert isinstance(merged, Conv)
    assert merged.weight.flatten().tolist() == [1, 11, 11, 1]
    assert (merged.padding, merged.output_padding) == ((1,), (0,))


def test_output_padding_of_a_branch_is_what_the_other_one_writes() -> None:
    # Of n inputs both write 2 n values: the one by an output padding, the other by its kernel.
    f, g = up(torch.full((1, 1, 3), 10.0), padding=1, output_padding=1), up(torch.ones(1, 1, 2))
    merged = add(f, g)
    assert isinstance(merged, Conv)
    assert merged.weight.flatten().tolist() == [10, 11, 11]
    assert (merged.padding, merged.output_padding) == ((1,), (1,))


def test_an_output_padding_too_large_for_torch_becomes_taps_of_zero() -> None:
    f, g = (
        up(random(2, 2, 2), stride=1, dilation=3, output_padding=2),
        up(random(2, 2, 2), stride=1),
    )
    merged = merged_from(f, g)
    assert (merged.kernel, merged.dilation, merged.output_padding) == ((7,), (1,), (0,))
    assert merged.weight[..., -2:].count_nonzero() == 0
    assert_same_map(merged, [f, g], random(2, 2, 3))


BLOCKS, TAPS, ONE = random(2, 2, 2), random(2, 2, 3), random(2, 2, 1)
REFUSED: list[tuple[Operator, Operator, str]] = [
    (up(BLOCKS), Conv(ONE, stride=(2,)), LEFT_OUT),
    (Conv(ONE, stride=(2,)), up(BLOCKS), LEFT_OUT),
    (up(BLOCKS), Conv(TAPS, padding=(1,), padding_mode="circular"), PADDED_BESIDE),
    (up(BLOCKS), Conv(TAPS, padding=(3,)), TOO_WIDE),
    (up(BLOCKS), Conv(TAPS, padding=(1,), border=random(2, 3)), "a bias that ends"),
    (up(BLOCKS, random(2)), Conv(TAPS, padding=(1,)), UNEVEN),
    (Conv(ONE, random(2)), up(BLOCKS), UNEVEN),
    (ScaleShift(random(2), random(2), 1), up(BLOCKS), UNEVEN),
    (Conv(TAPS, padding=(1,)), up(TAPS), CUT_OFF),
]


@pytest.mark.parametrize(("f", "g", "reason"), REFUSED)
def test_a_refusal_to_compose_states_the_rule(f: Operator, g: Operator, reason: str) -> None:
    refused = compose(f, g)
    assert isinstance(refused, Refusal)
    assert reason in refused.reason


@pytest.mark.parametrize(
    ("f", "g", "reason"),
    [
        (
            up(random(2, 2, 2)),
            up(random(2, 2, 3), stride=3),
            "the branches have strides (2,) and (3,)",
        ),
        (
            up(random(2, 2, 2)),
            up(random(2, 2, 3), output_padding=1),
            "the branches change the spatial size by (1,) and (3,)",
        ),
        (up(random(2, 2, 2)), Conv(random(2, 2, 3), stride=(2,)), LEFT_OUT),
    ],
)
def test_a_refusal_to_add_states_the_rule(f: Conv, g: Conv, reason: str) -> None:
    refused = add(f, g)
    assert isinstance(refused, Refusal)
    assert reason in refused.reason
