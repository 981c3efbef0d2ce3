"""Averages as depthwise convolutions, and pointwise operators on other ranks."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import groups_and_width, tensors

from fxreduce.operators.affine import Conv, ScaleShift, apply
from fxreduce.operators.pooling import averaging, has_bias, is_pointwise, on_rank, window_for
from fxreduce.operators.setting import output_shape


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_window_makes_an_axis_as_long_as_it_shall_be(length: int, target: int) -> None:
    conv = averaging(3, [window_for(length, target)])
    assert output_shape(conv, (1, 3, length)) == (1, 3, target)


@pytest.mark.parametrize(("length", "target", "window"), [(6, 3, (2, 2, 0)), (7, 1, (7, 7, 0))])
def test_windows_that_fit_are_torchs_own(
    length: int, target: int, window: tuple[int, int, int]
) -> None:
    assert window_for(length, target) == window


@given(st.sampled_from((2, 4, 6)), st.data())
def test_a_pointwise_operator_on_one_position_is_a_linear(
    channels: int, data: st.DataObject
) -> None:
    groups, width = data.draw(groups_and_width(channels))
    weight = data.draw(tensors(width, channels // groups, 1, 1))
    conv = Conv(weight, data.draw(st.none() | tensors(width)), groups=groups)
    x = data.draw(tensors(2, channels, 1, 1))
    assert_close(apply(conv, x).flatten(1), apply(on_rank(conv, 0), x.flatten(1)))
    assert_close(apply(conv, x).flatten(2), apply(on_rank(conv, 1), x.flatten(2)))
    scale = ScaleShift(data.draw(tensors(channels)), data.draw(tensors(channels)), 2)
    assert_close(apply(scale, x).flatten(1), apply(on_rank(scale, 0), x.flatten(1)))


def test_what_maps_every_position_alone_is_pointwise() -> None:
    weight = torch.ones(2, 2, 1)
    assert is_pointwise(Conv(weight))
    assert is_pointwise(ScaleShift(torch.ones(2), torch.zeros(2), 1))
    assert not is_pointwise(Conv(weight, stride=(2,)))
    assert not is_pointwise(Conv(weight, padding=(1,)))
    assert not is_pointwise(Conv(torch.ones(2, 2, 3)))


def test_a_shift_of_zeros_is_no_bias() -> None:
    assert has_bias(Conv(torch.ones(2, 2), torch.ones(2)))
    assert not has_bias(Conv(torch.ones(2, 2)))
    assert has_bias(ScaleShift(torch.ones(2), torch.ones(2), 0))
    assert not has_bias(ScaleShift(torch.ones(2), torch.zeros(2), 0))
