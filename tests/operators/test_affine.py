"""The descriptions of operators, and `apply`, the definition that every merge is held to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS, MODES, images, scale_shifts
from torch import nn

from fxreduce.operators.add import add
from fxreduce.operators.affine import (
    Conv,
    Operator,
    Refusal,
    ScaleShift,
    apply,
    for_any_values,
    identity,
    in_double,
    map_tensors,
    nonzero,
    on_meta,
)
from fxreduce.operators.compose import compose

SIZES = ((11,), (7, 10), (5, 4, 6))
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def described(conv: Any) -> Conv:
    """The operator that a convolution module is, written out by hand."""
    return Conv(
        conv.weight.detach(),
        None if conv.bias is None else conv.bias.detach(),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
        conv.transposed,
        conv.output_padding,
    )


@pytest.mark.parametrize(
    ("rank", "mode", "groups", "bias"), list(product((1, 2, 3), MODES, (1, 2), (True, False)))
)
def test_apply_is_what_torchs_convolution_computes(
    rank: int, mode: str, groups: int, bias: bool
) -> None:
    stride, dilation, padding = (2, 1, 1)[:rank], (1, 2, 1)[:rank], (2, 1, 0)[:rank]
    conv = CONVS[rank - 1](
        4, 6, 3, stride, padding, dilation, groups, bias, mode, dtype=torch.float64
    )
    x = torch.randn(2, 4, *SIZES[rank - 1], dtype=torch.float64)
    assert_close(conv(x), apply(described(conv), x), 1e-14)


@pytest.mark.parametrize(
    ("rank", "groups", "bias"), list(product((1, 2, 3), (1, 2), (True, False)))
)
def test_apply_is_what_torchs_transposed_convolution_computes(
    rank: int, groups: int, bias: bool
) -> None:
    stride, dilation, padding = (2, 3, 2)[:rank], (1, 2, 1)[:rank], (1, 0, 1)[:rank]
    conv = TRANSPOSED[rank - 1](
        4, 6, 3, stride, padding, (1, 2, 0)[:rank], groups, bias, dilation, dtype=torch.float64
    )
    x = torch.randn(2, 4, *SIZES[rank - 1], dtype=torch.float64)
    operator = described(conv)
    assert (operator.in_channels, operator.out_channels) == (4, 6)
    assert_close(conv(x), apply(operator, x), 1e-14)


@pytest.mark.parametrize("leading", [(3,), (2, 5), (2, 3, 4)])
def test_apply_of_rank_0_is_what_linear_computes_on_the_last_axis(leading: tuple[int, ...]) -> None:
    linear = nn.Linear(4, 6, dtype=torch.float64)
    x = torch.randn(*leading, 4, dtype=torch.float64)
    operator = Conv(linear.weight.detach(), linear.bias.detach())
    assert_close(linear(x), apply(operator, x), 1e-14)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_apply_of_a_scale_shift_is_what_batch_norm_computes_in_eval(rank: int) -> None:
    norm = NORMS[rank - 1](4, dtype=torch.float64).eval()
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        tensor.detach().uniform_(0.5, 2)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    operator = ScaleShift(scale, (norm.bias - norm.running_mean * scale).detach(), rank)
    x = torch.randn(2, 4, *SIZES[rank - 1], dtype=torch.float64)
    assert_close(norm(x), apply(operator, x), 1e-14)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_border_is_the_kernel_of_one_more_channel_of_ones(rank: int) -> None:
    weight, border = (torch.randn(6, n, *(3,) * rank, dtype=torch.float64) for n in (4, 1))
    geometry = {"stride": (2,) * rank, "padding": (2,) * rank, "bias": torch.randn(6).double()}
    x = torch.randn(2, 4, *SIZES[rank - 1], dtype=torch.float64)
    with_ones = torch.cat((x, torch.ones_like(x[:, :1])), 1)
    assert_close(
        apply(Conv(torch.cat((weight, border), 1), **geometry), with_ones),
        apply(Conv(weight, border=border.squeeze(1), **geometry), x),
        1e-14,
    )


@given(st.data(), st.integers(0, 3), st.sampled_from(CHANNELS))
def test_identity_returns_its_input(data: st.DataObject, rank: int, channels: int) -> None:
    x = data.draw(images(channels, rank))
    assert torch.equal(apply(identity(channels, rank), x), x)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "output_padding"])
def test_a_geometry_of_the_wrong_rank_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has 1 entries for spatial rank 2"):
        Conv(torch.zeros(1, 1, 3, 3), **{name: (1,)})


def test_missing_geometry_is_torchs_default() -> None:
    conv = Conv(torch.zeros(2, 1, 3, 5), groups=3)
    assert (conv.stride, conv.padding, conv.dilation) == ((1, 1), (0, 0), (1, 1))
    assert (conv.kernel, conv.rank, conv.in_channels, conv.out_channels) == ((3, 5), 2, 3, 2)


@pytest.mark.parametrize(
    ("conv", "pointwise"),
    [
        (Conv(torch.zeros(2, 2)), True),
        (Conv(torch.zeros(2, 2, 1, 1), stride=(2, 3), dilation=(4, 4)), True),
        (Conv(torch.zeros(2, 2, 1, 1), padding=(0, 1)), False),
        (Conv(torch.zeros(2, 2, 1, 2)), False),
        (Conv(torch.zeros(2, 2, 1, 1), transposed=True), False),
    ],
)
def test_pointwise_means_one_tap_and_no_padding(conv: Conv, pointwise: bool) -> None:
    assert conv.is_pointwise is pointwise


@given(st.data(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_mapping_tensors_returns_a_new_operator_and_leaves_the_old(
    data: st.DataObject, dtype: torch.dtype
) -> None:
    operator = map_tensors(data.draw(scale_shifts(1, 3)), lambda tensor: tensor.to(dtype))
    wide = in_double(operator)
    assert isinstance(operator, ScaleShift)
    assert isinstance(wide, ScaleShift)
    assert (operator.scale.dtype, wide.scale.dtype) == (dtype, torch.float64)
    assert on_meta(operator).scale.is_meta
    assert not operator.scale.is_meta


def test_zeros_are_no_tensor_and_on_the_meta_device_nothing_is_known() -> None:
    zeros = torch.zeros(3)
    assert nonzero(zeros) is None
    assert nonzero(None) is None
    assert nonzero(one := torch.eye(3)[0]) is one
    assert nonzero(meta := zeros.to("meta")) is meta
    assert not ScaleShift(one, zeros, 1).has_shift
    assert ScaleShift(meta, meta, 1).has_shift


@pytest.mark.parametrize("merge", [compose, add])
def test_a_number_on_the_cpu_goes_to_where_the_weights_are(
    merge: Callable[[Operator, Operator], Operator | Refusal],
) -> None:
    weights = on_meta(Conv(torch.zeros(2, 2, 1)))  # stands for any other device
    for pair in ((weights, identity(2, 1)), (identity(2, 1), weights)):
        merged = merge(*pair)
        assert isinstance(merged, Conv)
        assert merged.weight.is_meta


def test_for_any_values_no_tensor_counts_as_zero() -> None:
    zeros = torch.zeros(3)
    assert nonzero(zeros) is None
    with for_any_values():
        assert nonzero(zeros) is zeros
        assert nonzero(None) is None
        assert ScaleShift(torch.ones(3), zeros, 0).has_shift
    assert not ScaleShift(torch.ones(3), zeros, 0).has_shift
