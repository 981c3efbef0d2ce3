"""An operator as a module: it computes the same, and is read back as the same operator."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import pytest
import torch
from checks import assert_close, calling, read_operators
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS, MODES, convs, images, ranks, scale_shifts
from torch import Tensor, nn
from torch.export import export
from torch.fx import symbolic_trace

from fxreduce.graph.capture import capture
from fxreduce.graph.modules import BorderedConv, ChannelAffine, to_module
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, apply
from fxreduce.operators.compose import compose

DOUBLE = torch.empty(0, dtype=torch.float64)


def bordered(rank: int) -> Conv:
    """A pointwise convolution with a bias before a padded one."""
    kernel = (3,) * rank
    pointwise = Conv(torch.randn(3, 2, *(1,) * rank).double(), torch.randn(3).double())
    padded = Conv(
        torch.randn(4, 3, *kernel).double(),
        torch.randn(4).double(),
        stride=(2,) * rank,
        padding=(1,) * rank,
        dilation=(1,) * rank,
    )
    merged = compose(pointwise, padded)
    assert isinstance(merged, Conv)
    assert merged.border is not None
    return merged


@given(st.data(), ranks(), st.sampled_from(CHANNELS))
def test_a_module_computes_what_its_operator_does(
    data: st.DataObject, rank: int, channels: int
) -> None:
    operator: Operator = data.draw(convs(rank, channels) | scale_shifts(rank, channels))
    x = data.draw(images(channels, rank))
    try:
        expected = apply(operator, x)
    except (RuntimeError, ValueError):  # the input is smaller than the kernel
        return
    module = to_module(operator, DOUBLE)
    assert not module.training
    assert_close(expected, module(x))
    if x.dim() > 1:
        read = read_operators(calling(module), x)
        assert [type(each) for each in read] == [type(operator)]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_border_is_carried_for_every_size_and_read_back(rank: int) -> None:
    operator = bordered(rank)
    module = to_module(operator, DOUBLE)
    assert isinstance(module, BorderedConv)
    graph_module = capture(nn.Sequential(module).eval())
    for size in (1, 2, 3, 8):
        x = torch.randn(2, 2, *(size, 5, 4)[:rank], dtype=torch.float64)
        assert_close(apply(operator, x), module(x))
        (read,) = read_operators(calling(module), x)
        assert isinstance(read, Conv)
        assert_close(operator.border, read.border)
        assert_close(module(x), graph_module(x))


def test_a_border_of_zeros_is_left_out() -> None:
    operator = bordered(2)
    assert operator.border is not None
    without = replace(operator, border=torch.zeros_like(operator.border))
    assert isinstance(to_module(without, DOUBLE), nn.Conv2d)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_input_without_a_batch_axis_is_taken_as_torchs_own_modules_take_it(rank: int) -> None:
    module = to_module(bordered(rank), DOUBLE)
    x = torch.randn(1, 2, *(5, 6, 7)[:rank], dtype=torch.float64)
    assert_close(module(x)[0], module(x[0]))
    shift = ChannelAffine(torch.randn(2), torch.randn(2), rank).double()
    assert_close(shift(x)[0], shift(x[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_module_has_the_dtype_of_what_it_shall_be_like(dtype: torch.dtype) -> None:
    like = torch.empty(1, dtype=dtype)
    for operator in (bordered(2), ScaleShift(torch.ones(2), torch.ones(2), 2)):
        module = to_module(operator, like)
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        assert module(torch.randn(1, 2, 4, 4, dtype=dtype)).dtype == dtype


def test_without_a_like_torchs_default_dtype_serves() -> None:
    module = to_module(ScaleShift(*torch.ones(2, 2).double(), 2), None)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_weight_takes_over_the_memory_format() -> None:
    like = torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last)
    module = to_module(bordered(2), like)
    assert isinstance(module, BorderedConv)
    weight = module.conv.weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    plain = to_module(bordered(2), torch.empty(8, 4, 3, 3))
    assert isinstance(plain, BorderedConv)
    assert plain.conv.weight.is_contiguous()  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("mode", MODES)
def test_a_padding_mode_is_kept(mode: str) -> None:
    operator = Conv(torch.randn(2, 2, 3).double(), padding=(1,), padding_mode=mode)  # type: ignore[arg-type]
    module = to_module(operator, DOUBLE)
    assert isinstance(module, nn.Conv1d)
    assert module.padding_mode == mode


def special() -> nn.Module:
    affine = ScaleShift(*torch.randn(2, 2).double(), 2)
    return nn.Sequential(to_module(affine, DOUBLE), to_module(bordered(2), DOUBLE)).eval()


def test_the_modules_left_behind_can_be_traced_exported_copied_and_saved() -> None:
    model, x = special(), torch.randn(1, 2, 5, 6, dtype=torch.float64)
    expected = model(x)
    assert_close(expected, symbolic_trace(model)(x), 0)
    assert_close(expected, export(model, (x,)).module()(x), 0)
    assert_close(expected, copy.deepcopy(model)(x), 0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_close(expected, torch.load(file, weights_only=False)(x), 0)


def test_an_export_with_free_sizes_keeps_the_border_exact() -> None:
    model, x = special(), torch.randn(2, 2, 5, 6, dtype=torch.float64)
    auto = torch.export.Dim.AUTO
    exported = export(model, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)).module()
    other = torch.randn(3, 2, 9, 4, dtype=torch.float64)
    assert_close(model(other), exported(other), 1e-14)


def test_the_modules_left_behind_can_be_trained() -> None:
    model = special()
    model(torch.randn(1, 2, 5, 6, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_channel_affine_says_what_it_is() -> None:
    module = to_module(ScaleShift(torch.ones(7), torch.ones(7), 1), None)
    assert repr(module) == "ChannelAffine(7, rank=1)"
    assert not isinstance(compose(bordered(1), ScaleShift(*torch.ones(2, 4), 1)), Refusal)
