"""Patches times weights is what the operator computes, border, bias and groups included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checks import assert_close
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from strategies import CHANNELS, convs, images, ranks

from fxreduce.operators.affine import Conv, apply
from fxreduce.operators.patches import (
    features,
    output_size,
    outputs,
    patches,
    shape_of_weights,
    weights,
    with_weights,
)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Conv, torch.Tensor]:
    rank, channels = draw(ranks()), draw(st.sampled_from(CHANNELS))
    operator = draw(convs(rank, channels, transposed=False))
    if rank and operator.padding_mode == "zeros" and draw(st.booleans()):
        border = torch.randn(operator.out_channels, *operator.kernel, dtype=torch.float64)
        operator = replace(operator, border=border)
    x = draw(images(channels, rank))
    try:
        assume(apply(operator, x).numel())
    except RuntimeError:
        reject()  # the kernel does not fit
    return operator, x.reshape(-1, *x.shape[x.dim() - rank - 1 :])


@given(drawn())
def test_patches_times_weights_is_the_operators_value(given_: tuple[Conv, torch.Tensor]) -> None:
    operator, x = given_
    expected = apply(operator, x)
    assert output_size(operator, x) == tuple(expected.shape[2:])
    count = expected.shape[2:].numel()
    positions = torch.arange(count)[::2]
    read, matrices = patches(operator, x, positions), weights(operator)
    assert matrices.shape == shape_of_weights(operator)
    assert read.shape == (operator.groups, len(x) * len(positions), features(operator))
    assert_close(outputs(operator, expected, positions), read @ matrices.mT)


@given(drawn())
def test_weights_go_back_where_they_came_from(given_: tuple[Conv, torch.Tensor]) -> None:
    operator, x = given_
    again = with_weights(operator, weights(operator))
    assert again.bias is not None
    assert_close(apply(operator, x), apply(again, x))
    doubled = with_weights(operator, 2 * weights(operator))
    assert_close(2 * apply(operator, x), apply(doubled, x))


def test_a_patch_of_a_depthwise_convolution_reads_its_own_channel_alone() -> None:
    weight = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    operator = Conv(weight, padding=(1, 1), groups=4)
    assert features(operator) == 10
    x = torch.zeros(1, 4, 5, 5, dtype=torch.float64)
    x[0, 2] = 1
    read = patches(operator, x, torch.tensor([12]))
    assert read[2, 0, :9].tolist() == [1] * 9
    assert read[[0, 1, 3], 0, :9].abs().sum() == 0


@pytest.mark.parametrize("bias", [False, True])
def test_an_operator_without_bias_gets_one(bias: bool) -> None:
    operator = Conv(torch.randn(3, 2), torch.randn(3) if bias else None)
    given_bias = with_weights(operator, weights(operator)).bias
    assert given_bias is not None
    assert given_bias.tolist() == ([0, 0, 0] if operator.bias is None else operator.bias.tolist())
