"""compose(f, g) is g after f, or a refusal with the reason that the table of the design gives."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from checks import assert_close
from exactness import PADDED, UNEVEN, assert_same_map, expected_refusal, random
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import bordered_chains, chains, images
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, apply, on_meta
from fxreduce.operators.compose import compose, compose_all


@settings(max_examples=settings().max_examples * 3)  # there are many kinds of pairs
@given(st.data(), chains(2))
def test_two_operators_compose_exactly_where_the_table_says_so(
    data: st.DataObject, chain: list[Operator]
) -> None:
    merged, reason = compose(*chain), expected_refusal(*chain)
    if reason is not None:
        assert isinstance(merged, Refusal)
        assert reason in merged.reason
        return
    assert not isinstance(merged, Refusal)
    for largest in (9, 3):
        x = data.draw(images(chain[0].in_channels, chain[0].rank, largest))
        assert_same_map(merged, chain, x)


@given(st.data(), bordered_chains())
def test_a_shift_before_padding_is_carried_exactly(
    data: st.DataObject, chain: list[Operator]
) -> None:
    merged = compose(*chain)
    assert isinstance(merged, Conv)
    assert_same_map(merged, chain, data.draw(images(chain[0].in_channels, chain[0].rank)))


@given(st.data(), chains(3))
def test_three_operators_compose_from_either_side(
    data: st.DataObject, chain: list[Operator]
) -> None:
    f, g, h = chain
    x = data.draw(images(f.in_channels, f.rank))
    fg, gh = compose(f, g), compose(g, h)
    whole = [] if isinstance(fg, Refusal) else [compose(fg, h)]
    whole += [] if isinstance(gh, Refusal) else [compose(f, gh)]
    merged = [each for each in whole if not isinstance(each, Refusal)]
    assume(merged)
    for each in merged:
        assert_same_map(each, chain, x)


@given(chains(2))
def test_composing_on_the_meta_device_tells_the_geometry_of_the_real_one(
    chain: list[Operator],
) -> None:
    f, g = chain
    real, planned = compose(f, g), compose(on_meta(f), on_meta(g))
    if isinstance(real, Refusal) or isinstance(planned, Refusal):
        # Nothing is known of a shift on the meta device, so that it may refuse where not needed.
        assert isinstance(planned, Refusal)
        assert real == planned or UNEVEN in planned.reason
        return
    assert type(real) is type(planned)
    if isinstance(real, Conv) and isinstance(planned, Conv):
        assert real.weight.shape == planned.weight.shape
        for name in ("stride", "padding", "dilation", "groups", "padding_mode", "transposed"):
            assert getattr(real, name) == getattr(planned, name), name
        assert real.output_padding == planned.output_padding
        assert real.border is None or planned.border is not None


@given(chains(2))
def test_composing_leaves_its_operators_as_they_were(chain: list[Operator]) -> None:
    tensors = [
        tensor
        for operator in chain
        for tensor in vars(operator).values()
        if isinstance(tensor, Tensor)
    ]
    before = [tensor.clone() for tensor in tensors]
    compose(*chain)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


def test_a_bias_before_padding_reaches_the_border_as_often_as_taps_are_inside() -> None:
    f = Conv(torch.zeros(1, 1, 1, 1), torch.ones(1))
    g = Conv(torch.ones(1, 1, 3, 3), padding=(1, 1))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert apply(merged, random(1, 1, 3, 4))[0, 0].tolist() == [
        [4, 6, 6, 4],
        [6, 9, 9, 6],
        [4, 6, 6, 4],
    ]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_padding_behind_a_strided_pointwise_is_stretched_by_its_stride(
    size: tuple[int, int], bias: bool
) -> None:
    f = Conv(random(3, 2, 1, 1), random(3) if bias else None, stride=(2, 3))
    g = Conv(random(4, 3, 3, 3), random(4), stride=(1, 2), padding=(1, 2), dilation=(2, 1))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert (merged.padding, merged.stride, merged.dilation) == ((2, 6), (2, 6), (4, 3))
    assert_same_map(merged, [f, g], random(2, 2, *size))


def test_a_border_is_carried_through_all_that_may_stand_around_it() -> None:
    before = [ScaleShift(random(2), random(2), 2), Conv(random(3, 2, 1, 1), random(3))]
    padded = Conv(random(4, 3, 3, 3), random(4), padding=(1, 1))
    behind = [
        ScaleShift(random(4), random(4), 2),
        Conv(random(4, 2, 1, 1), random(4), groups=2),
        Conv(random(3, 4, 2, 3), random(3), stride=(2, 1), dilation=(1, 2)),
    ]
    chain = [*before, padded, *behind]
    forwards: Operator | Refusal = chain[0]
    for operator in chain[1:]:
        assert not isinstance(forwards, Refusal)
        forwards = compose(forwards, operator)
    backwards: Operator | Refusal = chain[-1]
    for operator in reversed(chain[2:-1]):
        assert not isinstance(backwards, Refusal)
        backwards = compose(operator, backwards)
    for operator in reversed(before):  # the second bias meets a border that is there already
        assert not isinstance(backwards, Refusal)
        backwards = compose(operator, backwards)
    for merged in (forwards, backwards):
        assert isinstance(merged, Conv)
        assert merged.border is not None
        for size in ((4, 7), (9, 6)):
            assert_same_map(merged, chain, random(2, 2, *size))


def test_without_a_bias_before_padding_no_border_is_carried() -> None:
    merged = compose(Conv(random(2, 2, 1, 1)), Conv(random(2, 2, 3, 3), random(2), padding=(1, 1)))
    assert isinstance(merged, Conv)
    assert merged.border is None
    assert merged.padding == (1, 1)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats_values_repeats_the_bias_with_them(mode: str) -> None:
    f = Conv(random(2, 2, 1, 1), random(2))
    g = Conv(random(3, 2, 3, 3), random(3), padding=(1, 2), padding_mode=mode)
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert (merged.border, merged.padding_mode) == (None, mode)
    assert_same_map(merged, [f, g], random(2, 2, 5, 6))


def test_padding_behind_a_kernel_along_another_axis_is_merged() -> None:
    f = Conv(random(3, 2, 1, 5), padding=(0, 2))
    g = Conv(random(4, 3, 5, 1), random(4), padding=(2, 0))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert (merged.kernel, merged.padding) == ((5, 5), (2, 2))
    assert_same_map(merged, [f, g], random(2, 2, 3, 4))
    refused = compose(replace(f, bias=random(3)), g)
    assert isinstance(refused, Refusal)
    assert PADDED in refused.reason


def test_padding_behind_a_full_convolution_reads_the_zeros_beyond_it() -> None:
    f = Conv(random(3, 2, 3), stride=(2,), padding=(4,), dilation=(2,))
    g = Conv(random(4, 3, 3), random(4), stride=(1,), padding=(2,))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert (merged.padding, merged.stride) == ((8,), (2,))
    for size in (1, 2, 5, 6):
        assert_same_map(merged, [f, g], random(2, 2, size))


def test_groups_keep_their_order_when_their_kernels_are_merged() -> None:
    # Depthwise by 1, 2, 3, 4, then two groups: rows (1 x0 + 2 x1, x1) and (3 x2, 4 x3 - 3 x2).
    f = Conv(torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1), groups=4)
    g = Conv(torch.tensor([[1.0, 1], [0, 0.5], [1, 0], [-1, 1]]).view(4, 2, 1), groups=2)
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert merged.groups == 2
    assert merged.weight.squeeze(2).tolist() == [[1, 2], [0, 1], [3, 0], [-3, 4]]
    x = torch.tensor([1.0, 10, 100, 1000], dtype=torch.float64).view(1, 4, 1)
    assert apply(merged, x).flatten().tolist() == [21, 10, 300, 3700]


@pytest.mark.parametrize(("first", "second", "merged_groups"), [(6, 2, 2), (2, 3, 1), (6, 4, 2)])
def test_groups_that_do_not_nest_are_widened_to_their_common_divisor(
    first: int, second: int, merged_groups: int
) -> None:
    f = Conv(random(12, 12 // first, 3), random(12), groups=first)
    g = Conv(random(12, 12 // second, 2), random(12), groups=second)
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert merged.groups == merged_groups
    assert_same_map(merged, [f, g], random(2, 12, 9))


def test_the_merged_bias_is_the_second_plus_what_the_first_one_sums_to() -> None:
    f = Conv(torch.eye(2), torch.tensor([10.0, 1]))
    g = Conv(torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([100.0, 200]))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert merged.bias is not None
    assert merged.bias.tolist() == [112, 234]


def test_a_merged_kernel_has_the_size_stride_and_padding_of_the_formula() -> None:
    f = Conv(random(2, 3, 3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3))
    g = Conv(random(4, 2, 2, 3), stride=(1, 3), dilation=(2, 1))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    reach = [d * (k - 1) + 1 for d, k in zip(merged.dilation, merged.kernel, strict=True)]
    assert reach == [1 * 2 + 2 * 2 * 1 + 1, 3 * 1 + 1 * 1 * 2 + 1]
    assert (merged.stride, merged.padding) == ((2, 3), (1, 2))


def test_taps_on_a_coarse_grid_stay_a_dilation() -> None:
    merged = compose(Conv(random(2, 2, 3), dilation=(2,)), Conv(random(2, 2, 3), dilation=(4,)))
    assert isinstance(merged, Conv)
    assert (merged.kernel, merged.dilation) == ((7,), (2,))


@pytest.mark.parametrize(
    ("f", "g", "reason"),
    [
        (
            Conv(random(2, 2)),
            ScaleShift(random(2), random(2), 1),
            "they act on different axes: spatial rank 0 before, 1 after",
        ),
        (Conv(random(2, 2)), Conv(random(2, 3)), "2 channels are written, 3 are read"),
        (
            Conv(random(2, 2, 3, 3), padding=(1, 1)),
            Conv(random(2, 2, 3, 5), padding=(1, 2)),
            "the second operator pads by 1×2 what the first, a 3×3 kernel padded by 1×1, " + PADDED,
        ),
        (
            Conv(random(2, 2, 1), stride=(2,)),
            Conv(random(2, 2, 3), padding=(1,), padding_mode="reflect"),
            "reflect padding does not commute with a stride",
        ),
    ],
)
def test_a_refusal_states_the_rule_and_the_figures(f: Operator, g: Operator, reason: str) -> None:
    assert compose(f, g) == Refusal(reason)


def test_half_precision_operators_are_merged_in_float64() -> None:
    f, g = (Conv(random(3, 3).half(), random(3).half()) for _ in range(2))
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert merged.weight.dtype == torch.float64
    assert_close(g.weight.double() @ f.weight.double(), merged.weight)


def test_a_narrowing_chain_of_matrices_is_multiplied_from_its_end() -> None:
    sizes = (64, 32, 32, 2)
    chain = [
        Conv(torch.randn(out, given, dtype=torch.float64), torch.randn(out, dtype=torch.float64))
        for given, out in pairwise(sizes)
    ]
    chain.insert(1, ScaleShift(torch.rand(32).double(), torch.rand(32).double(), 0))
    for operators, most in ((chain, 2 * 32 * 32 + 2 * 32 * 64), (chain[:3], 32 * 32 * 64)):
        with FlopCounterMode(display=False) as counter:
            merged = compose_all(operators)
        assert isinstance(merged, Conv)
        assert counter.get_total_flops() <= 2 * most * 1.1  # and the biases
        assert_same_map(merged, operators, torch.randn(3, 64, dtype=torch.float64))


def test_the_first_refusal_of_a_chain_is_its_own() -> None:
    narrow, wide = Conv(torch.randn(4, 3)), Conv(torch.randn(2, 5))
    refusal = compose_all([narrow, wide])
    assert isinstance(refusal, Refusal)
    assert refusal == compose(narrow, wide)
