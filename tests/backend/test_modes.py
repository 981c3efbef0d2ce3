"""Gradients, inference mode, autocast, train mode: merged where it is right, else as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from tests.backend.compiling import Inner, Network, image, network, norms
from tests.checks import assert_close, randomised


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_needs_no_gradients_is_merged(
    mode: Callable[[], AbstractContextManager[None]], inner: Inner
) -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    with mode():
        assert_close(model(x), compiled(x))
        model.blocks[0].conv.weight.mul_(1.5)
        assert_close(model(x), compiled(x))
    assert inner.compilations == 1
    assert inner.calls()["batch_norm"] == 0


def test_gradients_are_those_of_the_model_and_a_line_says_that_nothing_is_merged(
    inner: Inner, caplog: pytest.LogCaptureFixture
) -> None:
    model, twin, x = network(), network(), image()
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    with caplog.at_level(logging.INFO, "fxreduce"):
        compiled(x).square().sum().backward()
        compiled(x)
    twin(x).square().sum().backward()
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(its.grad, mine.grad)
    said = [record.message for record in caplog.records if record.name == "fxreduce"]
    assert said == ["a graph is compiled unmerged: gradients are enabled"]
    assert inner.calls()["batch_norm"] == 2


def test_training_and_evaluation_take_turns(inner: Inner) -> None:
    model, twin, x = network(), network(), image()
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    optimisers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (compiled, twin)]
    for _ in range(3):
        with torch.no_grad():
            assert_close(twin.eval()(x), compiled.eval()(x))
        for each, optimiser in zip((compiled.train(), twin.train()), optimisers, strict=True):
            optimiser.zero_grad()
            each(x).square().sum().backward()
            optimiser.step()
    assert inner.compilations == 2  # one for each mode
    for mine, its in zip(norms(model), norms(twin), strict=True):
        assert_close(its.running_var, mine.running_var)


def test_frozen_models_are_merged_with_gradients_enabled_too(inner: Inner) -> None:
    model, x = network().requires_grad_(False), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    assert_close(model(x), compiled(x))
    assert inner.calls()["batch_norm"] == 0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    assert_close(expected, gradient)
    assert inner.compilations == 2
    assert inner.calls()["batch_norm"] == 2


def test_gradients_that_the_graph_enables_itself_count(inner: Inner) -> None:
    model, x = network(), image()

    @torch.compile(backend=fxreduce.backend(inner))
    def call(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return model(x)

    with torch.no_grad():
        assert_close(model(x), call(x))
        assert call(x).requires_grad


def test_a_batch_norm_in_train_mode_is_left_alone(inner: Inner) -> None:
    model, twin, x = network(), network(), image()
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        each.blocks[0].norm.train()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    with torch.no_grad():
        for _ in range(3):
            assert_close(twin(x), compiled(x))
    assert inner.calls()["batch_norm"] == 1  # that in eval mode is merged
    assert_close(twin.blocks[0].norm.running_mean, model.blocks[0].norm.running_mean)
    assert inner.compilations == 1


@pytest.mark.parametrize("inside", [True, False])
def test_under_autocast_the_dtype_and_the_values_stay(inside: bool, inner: Inner) -> None:
    model, x = randomised(Network()).float(), image().float()

    def call(x: Tensor) -> Tensor:
        if not inside:
            return model(x)
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    compiled = torch.compile(call, backend=fxreduce.backend(inner))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        assert_close(call(x), compiled(x), 1e-2)
    assert inner.calls()["batch_norm"] == 2


def test_channels_last_stays(inner: Inner) -> None:
    model = network().blocks.to(memory_format=torch.channels_last)
    x = image().contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    with torch.no_grad():
        expected, seen = model(x), compiled(x)
    assert_close(expected, seen)
    assert seen.stride() == expected.stride()


def test_half_precision_is_merged_in_its_dtype(inner: Inner) -> None:
    model, x = network().bfloat16(), image().bfloat16()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    with torch.no_grad():
        assert_close(model(x), compiled(x), 0.05)
    assert inner.calls()["batch_norm"] == 0


def test_dropout_that_is_on_stays(inner: Inner) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(8, 2), nn.Dropout(), nn.Linear(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.drop(self.first(x)))

    model, x = Noisy(), torch.rand(4, 8)
    compiled = torch.compile(model, backend=fxreduce.backend(Inner()))
    with torch.no_grad():
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(expected, compiled(x))
