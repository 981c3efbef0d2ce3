"""Operators of any dtype are merged in float64, so that only the last rounding is seen."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close
from exactness import assert_same_map
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS, chains, convs, images, parallel_convs, scale_shifts
from torch import Tensor

from fxreduce.graph.modules import to_module
from fxreduce.operators.add import add
from fxreduce.operators.affine import Conv, Operator, Refusal, apply, in_double, map_tensors
from fxreduce.operators.compose import compose

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
dtypes = st.sampled_from(DTYPES)


def rounded(operator: Operator, dtype: torch.dtype) -> Operator:
    return map_tensors(operator, lambda tensor: tensor.to(dtype))


def tensors_of(operator: Operator) -> list[Tensor]:
    return [tensor for tensor in vars(operator).values() if isinstance(tensor, Tensor)]


def assert_rounds_once(merged: Operator, dtype: torch.dtype, x: Tensor) -> None:
    """In `dtype`, each output is off by half a unit of each weight and of the bias at most.

    Summed over the fan-in, that is half a unit of what the absolute weights make of |x|.
    """
    try:
        exact = apply(merged, x)
    except (RuntimeError, ValueError):  # the input is smaller than the kernel
        return
    off = (apply(in_double(rounded(merged, dtype)), x) - exact).abs()
    terms = apply(map_tensors(merged, Tensor.abs), x.abs())
    unit = torch.finfo(dtype).eps / 2
    # What is smaller than normal numbers is off by half of the smallest one's unit.
    smallest = torch.finfo(dtype).tiny * unit * (1 + x.abs().sum())
    assert bool((off <= 1.001 * unit * terms + smallest + 1e-12).all())


@given(st.data(), chains(2), dtypes, dtypes, dtypes)
def test_a_chain_of_mixed_dtypes_is_merged_exactly_and_rounded_once(
    data: st.DataObject,
    chain: list[Operator],
    first: torch.dtype,
    second: torch.dtype,
    last: torch.dtype,
) -> None:
    f, g = rounded(chain[0], first), rounded(chain[1], second)
    merged = compose(f, g)
    if isinstance(merged, Refusal):
        return
    assert {tensor.dtype for tensor in tensors_of(merged)} == {torch.float64}
    x = data.draw(images(f.in_channels, f.rank))
    assert_same_map(merged, [in_double(f), in_double(g)], x)
    assert_rounds_once(merged, last, x)


@given(st.data(), parallel_convs(), dtypes, dtypes, dtypes)
def test_branches_of_mixed_dtypes_are_added_exactly_and_rounded_once(
    data: st.DataObject,
    pair: tuple[Conv, Conv],
    first: torch.dtype,
    second: torch.dtype,
    last: torch.dtype,
) -> None:
    f, g = rounded(pair[0], first), rounded(pair[1], second)
    merged = add(f, g)
    assert isinstance(merged, Conv)
    assert {tensor.dtype for tensor in tensors_of(merged)} == {torch.float64}
    x = data.draw(images(f.in_channels, f.rank))
    try:
        expected = apply(in_double(f), x) + apply(in_double(g), x)
    except (RuntimeError, ValueError):  # the input is smaller than a kernel
        return
    assert_close(expected, apply(merged, x))
    assert_rounds_once(merged, last, x)


@given(st.data(), dtypes, st.sampled_from((1, 2)), st.sampled_from(CHANNELS))
def test_a_module_of_a_merged_operator_computes_in_the_dtype_of_the_model(
    data: st.DataObject, dtype: torch.dtype, rank: int, channels: int
) -> None:
    f = rounded(data.draw(convs(rank, channels, transposed=False)), dtype)
    merged = compose(f, rounded(data.draw(scale_shifts(rank, f.out_channels)), dtype))
    assert isinstance(merged, Conv)
    module = to_module(merged, tensors_of(f)[0])
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    x = data.draw(images(channels, rank, 6)).to(dtype)
    try:
        expected = apply(merged, x.double())
    except (RuntimeError, ValueError):
        return
    # Weights, products, sums and the result are each rounded; errors add up over the fan-in.
    fan_in = merged.weight[0].numel()
    terms = apply(map_tensors(merged, Tensor.abs), x.double().abs())
    off = (module(x).double() - expected).abs()
    assert bool((off <= (fan_in + 4) * torch.finfo(dtype).eps * terms + 1e-6).all())


@pytest.mark.parametrize(("dtype", "large"), [(torch.float16, 2048.0), (torch.bfloat16, 256.0)])
def test_what_half_precision_would_drop_while_summing_is_kept(
    dtype: torch.dtype, large: float
) -> None:
    f = Conv(torch.ones(3, 1, dtype=dtype), torch.ones(3, dtype=dtype))
    g = Conv(torch.tensor([[large, 1, -large]], dtype=dtype))
    assert torch.tensor(large, dtype=dtype) + 1 == large
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert merged.bias is not None
    assert (merged.weight.tolist(), merged.bias.tolist()) == ([[1]], [1])
    twice = add(Conv(g.weight[:, :1]), Conv(torch.ones(1, 1)))
    assert isinstance(twice, Conv)
    assert twice.weight.tolist() == [[large + 1]]
