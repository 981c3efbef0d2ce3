"""A scale-shift passes structure, which keeps the channels apart, and goes into an operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, assert_unchanged, randomised, state
from hypothesis import given
from networks import Network
from strategies import scaled_images
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.capture import capture
from fxreduce.graph.modules import BorderedConv
from fxreduce.passes.base import PassResult
from fxreduce.passes.fold_scale import FoldScale

Forward = Callable[[Any, Tensor], Any]


class Scaled(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.norm, self.wide = nn.BatchNorm2d(4), nn.BatchNorm2d(5)
        self.linear, self.flat = nn.Linear(4, 4), nn.Linear(4 * 6 * 3, 5)
        self.conv, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.many = nn.Conv2d(4, 400, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))
        self.plain = nn.Parameter(torch.rand(4))
        self.flat_norm = nn.BatchNorm1d(4 * 6 * 3)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 3, dtype=torch.float64)


def run(forward: Forward, *, exported: bool = False, shapes: bool = True) -> PassResult:
    model, x = randomised(Scaled(forward)), image()
    if exported:
        graph_module = capture(export(model, (x,)))
    else:
        graph_module = capture(model, x if shapes else None)
    result = FoldScale().run(graph_module)
    assert_close(model(x.clone()), result.graph_module(x.clone()))
    return result


@given(scaled_images())
def test_the_outputs_stay_and_two_operators_become_one(drawn: tuple[Network, Tensor]) -> None:
    net, x = drawn
    graph_module = capture(net, x)
    before = state(graph_module)
    result = FoldScale().run(graph_module)
    assert_unchanged(graph_module, before)
    assert_close(net(x), result.graph_module(x))
    assert not result.refusals
    assert Counter(edit.action for edit in result.edits) == Counter(created=1, replaced=2)
    assert not FoldScale().run(result.graph_module).modified


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.gain * m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda m, x: m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mul_(m.gain),
        lambda m, x: m.norm(F.avg_pool2d(m.point(x), 2)),
        lambda m, x: m.norm(m.point(x).view(2, 4, 6, 3)),
        lambda m, x: m.flat(torch.flatten(m.norm(x), 1)),
        lambda m, x: m.flat(m.flatten(m.norm(x))),
        lambda m, x: m.flat(m.norm(x).reshape(2, -1)),
        lambda m, x: m.flat((torch.tanh(x) * 2).flatten(1)),
        lambda m, x: m.linear(m.norm(x).mean((2, 3))),
        lambda m, x: m.plain * m.norm(x).permute(0, 2, 3, 1),
        lambda m, x: m.point(m.norm(x)[:, :, ::2].flip(1)),
    ],
)
def test_scales_that_pass_structure(forward: Forward, exported: bool) -> None:
    result = run(forward, exported=exported)
    assert not result.refusals
    counts = Counter(edit.action for edit in result.edits)
    assert counts == Counter(created=1, replaced=2)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda m, x: m.flat_norm(m.conv(x).flatten(1)),
            "flatten reads a channel of conv more than once, or not",
        ),
        (
            lambda m, x: m.linear(m.norm(x).reshape(2, 6, 3, 4)),
            "channels cannot be told apart behind reshape, or a mean counts padding",
        ),
        (
            lambda m, x: m.point(F.avg_pool2d(m.norm(x), 3, 1, 1)),
            "channels cannot be told apart behind avg_pool2d, or a mean counts padding",
        ),
        (
            lambda m, x: m.flat(m.norm(x).view(2, -1)),
            "view needs the memory that the scale-shift lays out",
        ),
        (
            lambda m, x: m.flat(m.norm(x).reshape(x.shape[0], -1)),
            "the arguments of reshape are computed by the graph",
        ),
        (
            lambda m, x: m.flat(y := m.norm(x).flatten(1)) + y[:, :5],
            "flatten has 2 readers: flat, getitem",
        ),
        (
            lambda m, x: (m.point(x)[:, :, :2] * m.gain).view(2, -1),
            "a view behind it needs values that lie in memory without gaps",
        ),
        (
            lambda m, x: m.many(F.avg_pool2d(m.norm(x), 2)),
            "merging does not pay",
        ),
    ],
)
def test_scales_that_stay_say_why(forward: Forward, reason: str) -> None:
    result = run(forward)
    assert not result.modified
    assert reason in " ".join(refusal.reason for refusal in result.refusals)


def test_without_shapes_nothing_tells_where_the_channels_go() -> None:
    result = run(lambda m, x: m.flat(m.norm(x).flatten(1)), shapes=False)
    (refusal,) = result.refusals
    assert "capture the model with example inputs" in refusal.reason


def test_a_shift_before_a_padded_convolution_is_carried_by_its_border() -> None:
    result = run(lambda m, x: m.conv(F.avg_pool2d(m.norm(x), 2)))
    assert isinstance(result.graph_module.get_submodule("conv"), BorderedConv)
