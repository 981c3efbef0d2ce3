"""A pointwise operator on maps of one position merges with the Linear behind their flattening."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, randomised
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.nodes import label
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_flatten import FuseFlatten

Forward = Callable[[Any, Tensor], Tensor]


class Head(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.pool, self.some = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 2))
        self.point, self.grouped = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1, groups=2)
        self.step, self.norm = nn.Conv2d(4, 6, 1, stride=2), nn.BatchNorm2d(4)
        self.act, self.flat, self.part = nn.PReLU(4), nn.Flatten(), nn.Flatten(2)
        self.linear, self.short = nn.Linear(6, 3), nn.Linear(4, 3)
        self.other = nn.BatchNorm1d(6)
        self.long, self.one = nn.Linear(12, 3), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 5, dtype=torch.float64)


def run(forward: Forward) -> tuple[nn.Module, PassResult]:
    model, x = randomised(Head(forward)), image()
    result = FuseFlatten().run(capture(model, x))
    for given in (x, torch.randn(3, 4, 2, 9, dtype=torch.float64)):
        assert_close(model(given), result.graph_module(given))
    return model, result


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.linear(torch.flatten(m.point(m.pool(x)), 1)),
        lambda m, x: m.linear(m.flat(m.grouped(m.pool(x)))),
        lambda m, x: m.linear(m.step(m.pool(x)).flatten(1)),
        lambda m, x: m.short(m.norm(F.adaptive_avg_pool2d(x, 1)).flatten(1)),
        lambda m, x: m.linear(m.point(x.mean((2, 3), keepdim=True)).flatten(1)),
        lambda m, x: m.linear(m.flat(m.point(m.act(m.norm(m.pool(x)))))),
        lambda m, x: m.other(m.flat(m.point(torch.relu(m.pool(x))))),
    ],
)
def test_both_become_one_linear(forward: Forward) -> None:
    model, result = run(forward)
    assert not result.refusals
    counts = Counter(created=2, replaced=1, erased=2)
    assert Counter(edit.action for edit in result.edits) == counts
    x = image()
    exported = FuseFlatten().run(capture(export(model, (x,))))
    assert_close(model(x), exported.graph_module(x))
    assert Counter(edit.action for edit in exported.edits) == counts


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda m, x: m.linear(m.flat(y := m.point(m.pool(x)))) * y.sum(),
            "point has 2 readers",
        ),
        (
            lambda m, x: m.linear(y := m.flat(m.point(m.pool(x)))) * y.sum(),
            "flat has 2 readers",
        ),
    ],
)
def test_what_others_read_stays(forward: Forward, reason: str) -> None:
    _, result = run(forward)
    assert not result.modified
    assert [refusal.reason for refusal in result.refusals] == [reason]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.long(m.flat(m.point(m.some(x)))),
        lambda m, x: m.linear(m.flat(m.point(x[:, :, :1, :1]))),
        lambda m, x: m.short(m.flat(m.pool(x))),
        lambda m, x: m.one(m.part(m.point(m.pool(x)))),
        lambda m, x: m.linear(m.flat(torch.cos(m.point(m.pool(x))))),
    ],
)
def test_larger_maps_and_what_stands_between_are_no_match(forward: Forward) -> None:
    _, result = run(forward)
    assert not result.modified
    assert not result.refusals


def test_a_bottleneck_that_would_be_lost_is_refused_with_both_figures() -> None:
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(400, 2, 1), nn.Flatten(), nn.Linear(2, 400)
    )
    result = FuseFlatten().run(capture(model.eval(), torch.randn(1, 400, 3, 3)))
    merged, apart = 400 * 400 + 16 * 800, 2 * (400 * 2 + 16 * 402)
    assert [refusal.reason for refusal in result.refusals] == [
        f"merging does not pay: {merged / 1e3:.4g} k merged, {apart / 1e3:.4g} k apart (flops)"
    ]


def test_hooks_of_the_flattening_would_see_other_values() -> None:
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 4)
    )
    model[2].register_forward_hook(lambda *_: None)
    result = FuseFlatten().run(capture(model.eval(), torch.randn(1, 4, 3, 3)))
    (refusal,) = result.refusals
    assert refusal.reason == "2 has forward hooks, which would see other values"


def test_an_average_lets_the_last_convolution_meet_the_classifier() -> None:
    model = randomised(
        nn.Sequential(
            nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3),
        )
    )  # fmt: skip
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    for given in (model, export(model, (x,))):
        fused = fxreduce.fuse(given, example_inputs=x)
        assert fxreduce.report(fused).operators_after == 2
        assert_close(model(x), fused(x))
    calls = [label(node) for node in fxreduce.fuse(model).graph.nodes]
    assert calls == ["input_1", "0", "1", "4", "5", "7", "output"]
