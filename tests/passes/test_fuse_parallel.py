"""Branches over one input that are added become one operator, where that is exact and pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import assert_close, randomised, rewritten
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.modules import ChannelAffine
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_parallel import FuseParallel

Forward = Callable[[Any, Tensor], Tensor]


class Branches(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.wide, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.down = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.valid, self.slim = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
        self.far = nn.Conv2d(4, 4, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def run(forward: Forward, x: Tensor) -> tuple[nn.Module, PassResult]:
    model = randomised(Branches(forward))
    return model, rewritten(FuseParallel(), model, x)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("forward", "merged", "erased"),
    [
        (lambda m, x: m.wide(x) + m.point(x), nn.Conv2d, 2),
        (lambda m, x: m.point(x) + m.wide(x), nn.Conv2d, 2),
        (lambda m, x: m.wide(x) + x, nn.Conv2d, 1),
        (lambda m, x: x + m.depth(x), nn.Conv2d, 1),
        (lambda m, x: torch.add(m.norm(x), x), ChannelAffine, 1),
        (lambda m, x: torch.add(m.norm(x), other=m.other(x)), ChannelAffine, 2),
        (lambda m, x: m.wide(x).add(m.depth(x), alpha=1), nn.Conv2d, 2),
        (lambda m, x: m.wide(x).add_(x), nn.Conv2d, 1),
        (lambda m, x: m.depth(x).add_(m.far(x)), nn.Conv2d, 2),
        (lambda m, x: (y := torch.tanh(x)).add_(m.wide(y)), nn.Conv2d, 1),
    ],
)
def test_branches_and_the_skip_become_one(forward: Forward, merged: type, erased: int) -> None:
    model, result = run(forward, image())
    assert not result.refusals
    counts = Counter(edit.action for edit in result.edits)
    assert counts == Counter(created=1, replaced=1, erased=erased)
    (node,) = (n for n in result.graph_module.graph.nodes if n.op == "call_module")
    assert type(result.graph_module.get_submodule(str(node.target))) is merged
    exported = FuseParallel().run(capture(export(model, (image(),))))
    x = image()
    assert_close(model(x.clone()), exported.graph_module(x.clone()))
    assert exported.modified


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.down(x) + m.point(x)[:, :, ::2, ::2], None),
        (lambda m, x: m.wide(x) + m.point(torch.tanh(x)), None),
        (lambda m, x: m.wide(x) + torch.tanh(m.point(x)), None),
        (lambda m, x: m.wide(x) - m.point(x), None),
        (lambda m, x: torch.add(m.wide(x), x, alpha=2), None),
        (lambda m, x: (y := m.wide(x)) + y, None),
        (lambda m, x: x + x, None),
        (lambda m, x: m.wide(x) + 1, None),
        (
            lambda m, x: m.wide(x) + (y := m.point(x)) + torch.tanh(y),
            "branch point has 2 readers",
        ),
        (
            lambda m, x: m.down(x[:, :, :1, :1]) + x[:, :, :1, :1],
            None,
        ),
        (lambda m, x: m.slim(x)[:, :1] + x, None),
        (
            lambda m, x: m.valid(x[:, :, :3, :3].clone()) + x[:, :, :3, :3].mean(),
            None,
        ),
        (lambda m, x: x.add_(m.wide(x)), "it overwrites a tensor that others read"),
        (
            lambda m, x: m.wide(y := torch.tanh(x)) + m.point(y.mul_(2)),
            None,
        ),
    ],
)
def test_what_is_no_sum_of_branches_or_not_safe_stays(forward: Forward, reason: str | None) -> None:
    _, result = run(forward, image())
    assert not result.modified
    assert [refusal.reason for refusal in result.refusals] == ([] if reason is None else [reason])


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.down(x) + x, "the branches have strides (2, 2) and (1, 1)"),
        (lambda m, x: m.valid(x) + x, "change the spatial size by (-2, -2) and (0, 0)"),
    ],
)
def test_branches_that_broadcast_are_refused(forward: Forward, reason: str) -> None:
    shape = (2, 4, 1, 1) if "strides" in reason else (2, 4, 3, 3)
    _, result = run(forward, torch.randn(shape, dtype=torch.float64))
    assert [reason in refusal.reason for refusal in result.refusals] == [True]


def test_an_input_overwritten_between_the_branches_is_two_inputs() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        first = m.wide(y)
        y.mul_(2)
        return first + m.point(y)

    _, result = run(forward, image())
    (refusal,) = result.refusals
    assert refusal.reason == "tanh is overwritten in place between the branches"


def test_a_merger_that_costs_more_is_refused_with_both_figures() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv2d(64, 64, 7, padding=3, groups=64)
            self.dense = nn.Conv2d(64, 64, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.deep(x) + self.dense(x)

    result = FuseParallel().run(capture(Grouped().eval(), torch.randn(1, 64, 10, 10)))
    moved = 16 * (64 + 64) * 100  # activations read and written, 16 multiply-adds each
    merged = 64 * 64 * 49 * 100 + moved
    apart = (64 * 49 + 64 * 64 + 64) * 100 + 3 * moved  # the last one is the addition
    assert [refusal.reason for refusal in result.refusals] == [
        f"merging does not pay: {merged / 1e6:.4g} M merged, {apart / 1e6:.4g} M apart (flops)"
    ]


def test_numbers_alone_are_no_branches() -> None:
    _, result = run(lambda m, x: x * 2 + x, image())
    assert not result.modified
    assert "neither has weights" in result.refusals[0].reason


def test_a_bordered_branch_and_the_skip_are_one_bordered_convolution() -> None:
    model = randomised(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = model

        def forward(self, x: Tensor) -> Tensor:
            return self.branch(x) + x

    residual = Residual().eval()
    fused = fxreduce.fuse(residual, example_inputs=image())
    assert fxreduce.report(fused).operators_after == 1
    for size in ((1, 1), (2, 5), (6, 6)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        assert_close(residual(x), fused(x))
