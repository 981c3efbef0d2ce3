"""A setting tells the shape of what an operator gives, and is large where nothing is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import CHANNELS, images, operators, ranks

from fxreduce.operators.affine import Conv, apply, identity
from fxreduce.operators.setting import Setting, output_shape, positions, settings_along


@given(st.data(), ranks(), st.sampled_from(CHANNELS))
def test_the_shape_told_is_that_of_the_output(data: Any, rank: int, channels: int) -> None:
    operator, x = data.draw(operators(rank, channels)), data.draw(images(channels, rank))
    try:
        y = apply(operator, x)
    except (RuntimeError, ValueError):
        assume(False)
    assert output_shape(operator, tuple(x.shape)) == tuple(y.shape)


def test_an_input_without_a_batch_axis_has_a_shape_too() -> None:
    assert output_shape(Conv(torch.empty(8, 4, 3, 3)), (4, 6, 7)) == (8, 4, 5)
    assert positions(identity(4, 2), (4, 6, 7)) == 42


def test_settings_follow_the_operators_and_keep_the_dtype() -> None:
    chain = [Conv(torch.empty(8, 4, 3), stride=(2,)), identity(8, 1)]
    first = Setting((2, 4, 9), torch.float16, "cuda:0")
    assert list(settings_along(chain, first)) == [
        first,
        Setting((2, 8, 4), torch.float16, "cuda:0"),
    ]


@pytest.mark.parametrize(("rank", "axes"), [(0, 2), (1, 3), (2, 4), (3, 5)])
def test_an_assumed_shape_is_one_that_the_operator_takes(rank: int, axes: int) -> None:
    setting = Setting.assumed(Conv(torch.empty(4, 6, *(3,) * rank)))
    assert setting.nominal
    assert len(setting.shape) == axes
    assert setting.shape[1] == 6
