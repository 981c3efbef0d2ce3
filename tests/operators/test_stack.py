"""stack(f, g) equals both outputs laid behind one another, or says why it cannot be built."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import images, scale_shifts, siblings
from torch import Tensor

from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, apply, on_meta
from fxreduce.operators.stack import stack


def both(f: Operator, g: Operator, x: Tensor) -> Tensor:
    return torch.cat([apply(f, x), apply(g, x)], -f.rank - 1)


@given(siblings(), st.data())
def test_a_stack_computes_both_behind_one_another(
    drawn: tuple[Conv, Conv], data: st.DataObject
) -> None:
    f, g = drawn
    stacked = stack(f, g)
    assert not isinstance(stacked, Refusal)
    x = data.draw(images(f.in_channels, f.rank, 12))
    try:
        expected = both(f, g, x)
    except RuntimeError:
        return  # the input is smaller than a kernel or its padding
    assert_close(expected, apply(stacked, x))
    geometry = stack(on_meta(f), on_meta(g))
    assert isinstance(geometry, Conv)
    assert isinstance(stacked, Conv)
    assert geometry.weight.shape == stacked.weight.shape


@given(st.integers(0, 3), st.sampled_from((1, 3, 4)), st.data())
def test_scale_shifts_stack_into_a_pointwise_convolution(
    rank: int, channels: int, data: st.DataObject
) -> None:
    f, g = (data.draw(scale_shifts(rank, channels)) for _ in "fg")
    stacked = stack(f, g)
    assert isinstance(stacked, Conv)
    assert stacked.is_pointwise
    x = data.draw(images(channels, rank))
    assert_close(both(f, g, x), apply(stacked, x))


def test_borders_are_stacked_with_the_rows() -> None:
    weight, border = torch.randn(2, 3, 3, 3).double(), torch.randn(2, 3, 3).double()
    f = Conv(weight, padding=(1, 1), border=border)
    g = Conv(torch.randn(4, 3, 1, 1).double(), torch.randn(4).double())
    x = torch.randn(2, 3, 5, 4).double()
    stacked = stack(f, g)
    assert not isinstance(stacked, Refusal)
    assert_close(both(f, g, x), apply(stacked, x))


def test_the_first_ones_rows_come_first_and_each_keeps_its_bias() -> None:
    f = Conv(torch.tensor([[[2.0]]]), torch.tensor([1.0]))
    g = Conv(torch.tensor([[[3.0]], [[5.0]]]))
    stacked = stack(f, g)
    assert isinstance(stacked, Conv)
    assert stacked.weight.flatten().tolist() == [2, 3, 5]
    assert stacked.bias is not None
    assert stacked.bias.tolist() == [1, 0, 0]


def conv(width: int = 2, channels: int = 4, kernel: int = 3, **options: object) -> Conv:
    return Conv(torch.randn(width, channels, kernel), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("f", "g", "reason"),
    [
        (conv(), conv(channels=3), "the siblings read 4 and 3 channels"),
        (conv(stride=(2,)), conv(), "strides (2,) and (1,)"),
        (conv(padding=(1,)), conv(), "change the spatial size by (0,) and (-2,)"),
        (
            conv(padding=(1,), padding_mode="reflect"),
            conv(padding=(1,)),
            "the branches pad in different ways: reflect, zeros",
        ),
        (conv(transposed=True, width=4, channels=2), conv(), "a transposed convolution is not"),
        (
            ScaleShift(torch.ones(4), torch.ones(4), 2),
            conv(),
            "they act on different axes: spatial ranks 2 and 1",
        ),
    ],
)
def test_what_cannot_be_stacked_is_refused(f: Operator, g: Operator, reason: str) -> None:
    stacked = stack(f, g)
    assert isinstance(stacked, Refusal)
    assert reason in stacked.reason
