"""Biases that go through padding: a constant of one image's size where that is known."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config

import fxreduce
from fxreduce.graph import modules
from tests.backend.compiling import Inner
from tests.checks import assert_close, randomised
from tests.versions import since

pytestmark = pytest.mark.usefixtures("no_grad")


def block(stride: int = 1) -> nn.Module:
    """An inverted residual block without rectifiers, which merges to one bordered convolution."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(4, 24, 1),
            nn.Conv2d(24, 24, 3, stride, padding=1, groups=24),
            nn.Conv2d(24, 4, 1),
        )
    )


def image(batch: int = 2, size: int = 9) -> Tensor:
    return torch.randn(batch, 4, size, size + 2, dtype=torch.float64)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_computed_once_with_the_folded_weights(stride: int, freeze: bool) -> None:
    model, x, inner = block(stride), image(), Inner("aot_eager")
    compiled = torch.compile(model, backend=fxreduce.backend(inner, freeze=freeze))
    assert_close(model(x), compiled(x))
    assert inner.calls()["conv2d"] == 1
    assert inner.calls()["convolution"] == 0


def test_it_follows_the_weights_and_serves_every_batch(inner: Inner) -> None:
    model, other = block(), block()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    x = image()
    torch._dynamo.mark_dynamic(x, 0)
    assert_close(model(x), compiled(x))
    model[0].bias.mul_(3)
    assert_close(model(x), compiled(x))
    model.load_state_dict(other.state_dict())
    for batch in (1, 2, 3, 7):
        x = image(batch)
        assert_close(other(x), compiled(x))
    assert inner.compilations <= 2  # a batch of one may be compiled on its own


def test_each_size_has_its_own_and_dynamic_ones_have_none(inner: Inner) -> None:
    model = block()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    for size in (9, 10, 3, 1):
        x = image(size=size)
        assert_close(model(x), compiled(x))
    assert [inner.calls(place)["convolution"] for place in (0, 1)] == [0, 1]


def test_an_image_without_a_batch_has_one_too(inner: Inner) -> None:
    model, x = block(), image()[0]
    assert_close(model(x), torch.compile(model, backend=fxreduce.backend(inner))(x))
    assert inner.calls()["convolution"] == 0


def test_too_large_a_one_is_computed_at_each_call(
    inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = block(), image()
    offset = 4 * 9 * 11 * x.element_size()
    for most, computed in ((offset, 0), (offset - 1, 1)):
        monkeypatch.setattr(modules, "_OFFSET", most)
        torch.compiler.reset()
        compiled = torch.compile(model, backend=fxreduce.backend(inner))
        assert_close(model(x), compiled(x))
        assert inner.calls()["convolution"] == computed


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("shape", [(1, 4, 9, 9), (4, 9, 9)])
def test_inductor_does_not_overwrite_a_frozen_one(shape: tuple[int, ...], ahead: bool) -> None:
    """It would where the layout of a constant is the one that a convolution writes."""
    model = nn.Sequential(*block()[:2], nn.Conv2d(24, 1, 1), nn.ReLU()).float().eval()
    x = torch.randn(shape)
    with config.patch(freezing=True):
        if ahead:
            compiled = torch.compile(fxreduce.fuse(model, example_inputs=x))
        else:
            compiled = torch.compile(model, backend=fxreduce.backend(freeze=True))
        for _ in range(3):
            assert_close(model(x), compiled(x), 1e-5)


class Placed(nn.Module):
    """A convolution and a number for each position that is added to its result."""

    def __init__(self, expanded: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 1, 3, padding=1)
        self.place = nn.Parameter(torch.randn(1, 9, 11) if expanded else torch.randn(1, 1, 9, 11))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.relu(y + self.place.expand_as(y))


@since((2, 10), "inductor alone computes something else of this model once it freezes weights")
@pytest.mark.parametrize("expanded", [True, False])
def test_nor_what_the_model_itself_adds(expanded: bool) -> None:
    model, x = Placed(expanded).eval(), image(1).float()
    for mode in (config.patch(freezing=True), nullcontext()):
        with mode:
            torch.compiler.reset()
            compiled = torch.compile(model, backend=fxreduce.backend(freeze=True))
            for _ in range(3):
                assert_close(model(x), compiled(x), 1e-5)
    model.place.mul_(2)
    with pytest.raises(fxreduce.WeightsChangedError, match="place"):
        compiled(x)
