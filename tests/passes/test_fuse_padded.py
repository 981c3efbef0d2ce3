"""Padded convolutions behind one another are merged inside, exactly, where that pays."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import torch
from checks import assert_close, randomised
from hypothesis import given
from networks import Wiring
from strategies import padded_pairs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxreduce
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.capture import capture
from fxreduce.operators.affine import Conv, apply
from fxreduce.operators.border import compose_inside
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_padded import FusePadded


def stem(*, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, stride=stride, padding=1)
    )


def run(model: nn.Module, x: Tensor) -> PassResult:
    result = FusePadded().run(capture(randomised(model), x))
    assert_close(model(x), result.graph_module(x))
    return result


def image(*sizes: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *sizes, dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_stem_of_few_channels_becomes_one_convolution_exact_at_every_size(stride: int) -> None:
    model = stem(stride=stride)
    result = run(model, image(64, 80))
    assert Counter(edit.action for edit in result.edits) == Counter(created=1, replaced=1, erased=1)
    (module,) = (m for m in result.graph_module.modules() if isinstance(m, BorderCorrectedConv))
    assert isinstance(module.inside, nn.Conv2d)
    assert module.inside.kernel_size == (5, 5)
    for sizes in ((160, 160), (7, 31), (33, 12), (5, 5), (2, 9), (1, 1)):
        x = image(*sizes)
        assert_close(model(x), result.graph_module(x))


@given(padded_pairs())
def test_whatever_the_windows_are_the_values_stay(drawn: tuple[Conv, Conv, Tensor]) -> None:
    f, g, x = drawn
    inside = compose_inside(f, g)
    assert isinstance(inside, Conv)
    module = BorderCorrectedConv(inside, f, g, x)
    assert_close(apply(g, apply(f, x)), module(x))


def test_what_does_not_pay_is_refused_with_both_figures() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1))
    result = run(model, image(40, 40, channels=32))
    (refusal,) = result.refusals
    assert refusal.where == "0 → 1"
    assert refusal.reason.startswith("with its border corrected, merging does not pay: ")


def test_a_small_image_has_nothing_inside() -> None:
    (refusal,) = run(stem(), image(2, 2)).refusals
    assert "nothing lies inside the border" in refusal.reason


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.b(y := m.a(x)) + y,
        lambda m, x: m.b(m.a(x).relu()),
        lambda m, x: m.b(m.point(x)),
        lambda m, x: m.valid(m.a(x)),
    ],
)
def test_other_pairs_are_left_alone(function: Any) -> None:
    model = Wiring(
        function,
        a=nn.Conv2d(3, 32, 3, padding=1),
        b=nn.Conv2d(32, 32, 3, padding=1),
        point=nn.Conv2d(3, 32, 1),
        valid=nn.Conv2d(32, 32, 3),
    )
    result = run(model, image(30, 30))
    assert not result.modified
    assert not result.refusals


def test_fuse_counts_the_calls_that_are_really_made() -> None:
    x = torch.randn(1, 3, 64, 64)
    model = stem().eval()
    fused = fxreduce.fuse(model, example_inputs=x)
    report = fxreduce.report(fused)
    with FlopCounterMode(display=False) as made:  # which counts two for a multiply-add
        fused(x)
    assert 2 * report.macs_after == made.get_total_flops()
    assert report.macs_after < report.macs_before
    assert (report.operators_before, report.operators_after) == (2, 1)


def test_it_can_be_exported_compiled_captured_again_and_trained() -> None:
    x = torch.randn(2, 3, 64, 64)
    model = stem().eval()
    fused = fxreduce.fuse(model, example_inputs=x)
    expected = fused(x)
    assert_close(expected, torch.export.export(fused, (x,)).module()(x), 1e-5)
    assert_close(expected, torch.compile(fused, backend="aot_eager")(x), 1e-5)
    assert_close(expected, fxreduce.capture(nn.Sequential(fused).eval())(x), 1e-5)
    trained = deepcopy(fused).train()
    trained(x).sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


def test_half_precision_and_channels_last_are_kept() -> None:
    x = torch.randn(2, 3, 64, 64).bfloat16()
    model = stem().eval().bfloat16().to(memory_format=torch.channels_last)
    fused = fxreduce.fuse(model, example_inputs=x)
    (module,) = (m for m in fused.modules() if isinstance(m, BorderCorrectedConv))
    assert isinstance(module.inside, nn.Conv2d)
    assert module.inside.weight.dtype == torch.bfloat16
    assert module.inside.weight.is_contiguous(memory_format=torch.channels_last)
