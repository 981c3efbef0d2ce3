"""add(f, g) is f + g, or a refusal with its reason."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS, convs, images, parallel_convs, scale_shifts
from torch import Tensor

from fxreduce.operators.add import add
from fxreduce.operators.affine import (
    Conv,
    Operator,
    Refusal,
    ScaleShift,
    apply,
    identity,
    on_meta,
)
from fxreduce.operators.compose import compose
from fxreduce.operators.transposed import as_ordinary


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_sum(merged: Operator | Refusal, f: Operator, g: Operator, x: Tensor) -> None:
    assert not isinstance(merged, Refusal)
    try:
        expected = apply(f, x) + apply(g, x)
    except (RuntimeError, ValueError):  # the input is smaller than a kernel
        return
    assert_close(expected, apply(merged, x))


@given(st.data(), parallel_convs())
def test_branches_of_one_stride_and_shape_are_added_exactly(
    data: st.DataObject, pair: tuple[Conv, Conv]
) -> None:
    f, g = pair
    modes = {each.padding_mode for each in pair if each.is_padded}
    assert len(modes) <= 1
    for largest in (9, 4):
        x = data.draw(images(f.in_channels, f.rank, largest))
        assert_sum(add(f, g), f, g, x)
        assert_sum(add(g, f), f, g, x)


@given(st.data(), parallel_convs(("zeros",)))
def test_branches_that_carry_a_shift_before_padding_are_added_exactly(
    data: st.DataObject, pair: tuple[Conv, Conv]
) -> None:
    before = data.draw(scale_shifts(pair[0].rank, pair[0].in_channels))
    f, g = (compose(before, each) for each in pair)
    assert isinstance(f, Conv)
    assert isinstance(g, Conv)
    x = data.draw(images(f.in_channels, f.rank))
    assert_sum(add(f, g), f, g, x)


@given(st.data(), st.integers(0, 3), st.sampled_from(CHANNELS))
def test_scale_shifts_and_the_skip_are_added_exactly(
    data: st.DataObject, rank: int, channels: int
) -> None:
    f = data.draw(scale_shifts(rank, channels))
    x = data.draw(images(channels, rank))
    assert isinstance(add(f, identity(channels, rank)), ScaleShift)
    assert_sum(add(f, identity(channels, rank)), f, identity(channels, rank), x)


@given(st.data(), st.integers(0, 3), st.sampled_from(CHANNELS))
def test_the_skip_is_added_exactly_where_it_keeps_the_shape_and_refused_elsewhere(
    data: st.DataObject, rank: int, channels: int
) -> None:
    f = data.draw(convs(rank, channels))
    skip = data.draw(st.sampled_from([identity(channels, rank)]) | scale_shifts(rank, channels))
    merged = add(f, skip)
    f = as_ordinary(f)
    growth = [2 * p - d * (k - 1) for p, d, k in zip(f.padding, f.dilation, f.kernel, strict=True)]
    fits = f.out_channels == channels and set(f.stride) <= {1} and growth == [*f.output_padding]
    assert isinstance(merged, Refusal) is not fits
    if fits:
        assert_sum(merged, f, skip, data.draw(images(channels, rank)))


@given(parallel_convs())
def test_adding_on_the_meta_device_tells_the_geometry_of_the_real_one(
    pair: tuple[Conv, Conv],
) -> None:
    real, planned = add(*pair), add(*map(on_meta, pair))
    assert isinstance(real, Conv)
    assert isinstance(planned, Conv)
    assert real.weight.shape == planned.weight.shape
    for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(real, name) == getattr(planned, name), name


def test_the_smaller_kernel_lies_about_the_shared_centre() -> None:
    f = Conv(torch.ones(1, 1, 3), torch.tensor([5.0]), padding=(1,))
    g = Conv(torch.full((1, 1, 1), 10.0), torch.tensor([100.0]))
    merged = add(f, g)
    assert isinstance(merged, Conv)
    assert merged.bias is not None
    assert merged.weight.flatten().tolist() == [1, 11, 1]
    assert (merged.bias.tolist(), merged.padding) == ([105], (1,))


def test_an_even_kernel_keeps_its_place_on_the_grid() -> None:
    # Taps 0, 1 of the one and -1, 0, 1, 2 of the other.
    f, g = Conv(torch.full((1, 1, 2), 10.0)), Conv(torch.ones(1, 1, 4), padding=(1,))
    merged = add(f, g)
    assert isinstance(merged, Conv)
    assert merged.weight.flatten().tolist() == [1, 11, 11, 1]


def test_a_dilated_kernel_meets_the_taps_of_a_dense_one() -> None:
    f = Conv(torch.full((1, 1, 3), 10.0), padding=(2,), dilation=(2,))
    g = Conv(torch.ones(1, 1, 3), padding=(1,))
    merged = add(f, g)
    assert isinstance(merged, Conv)
    assert merged.weight.flatten().tolist() == [10, 1, 11, 1, 10]


def test_a_depthwise_branch_keeps_its_channels_in_a_dense_one() -> None:
    merged = add(Conv(torch.tensor([[1.0, 2], [3, 4]])), ScaleShift(*torch.eye(2) * 10, 0))
    assert isinstance(merged, Conv)
    assert merged.weight.tolist() == [[11, 2], [3, 4]]
    grouped = add(
        Conv(torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1), groups=4),
        Conv(torch.tensor([[10.0, 20], [30, 40], [50, 60], [70, 80]]).view(4, 2, 1), groups=2),
    )
    assert isinstance(grouped, Conv)
    assert grouped.groups == 2
    assert grouped.weight.squeeze(2).tolist() == [[11, 20], [30, 42], [53, 60], [70, 84]]


def test_a_border_is_added_with_its_operator() -> None:
    before = Conv(random(2, 2, 1, 1), random(2))
    bordered = compose(before, Conv(random(2, 2, 3, 3), random(2), padding=(1, 1)))
    wide = compose(before, Conv(random(2, 2, 5, 3), padding=(2, 1)))
    assert isinstance(bordered, Conv)
    assert isinstance(wide, Conv)
    assert bordered.border is not None
    x = random(2, 2, 4, 3)
    for other in (identity(2, 2), wide):
        assert_sum(add(bordered, other), bordered, other, x)


@pytest.mark.parametrize(
    ("f", "g", "reason"),
    [
        (
            Conv(random(2, 2)),
            identity(2, 1),
            "they act on different axes: spatial ranks 0 and 1",
        ),
        (
            Conv(random(4, 2)),
            identity(2, 0),
            "the branches map 2 to 4 channels and 2 to 2",
        ),
        (
            Conv(random(2, 2, 1), stride=(2,), transposed=True),
            identity(2, 1),
            "the branches have strides (2,) and (1,)",
        ),
        (
            Conv(random(2, 2, 1), stride=(2,)),
            identity(2, 1),
            "the branches have strides (2,) and (1,)",
        ),
        (
            Conv(random(2, 2, 3)),
            identity(2, 1),
            "the branches change the spatial size by (-2,) and (0,)",
        ),
        (
            Conv(random(2, 2, 3), padding=(1,), padding_mode="reflect"),
            Conv(random(2, 2, 5), padding=(2,)),
            "the branches pad in different ways: reflect, zeros",
        ),
    ],
)
def test_a_refusal_states_the_rule_and_the_figures(f: Operator, g: Operator, reason: str) -> None:
    assert add(f, g) == Refusal(reason)
