"""A scale and shift behind a concatenation goes into the operators before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import assert_close, assert_unchanged, randomised, rewritten, state
from hypothesis import given
from strategies import Concatenated, concatenated
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.capture import capture
from fxreduce.graph.nodes import label
from fxreduce.passes.base import PassResult
from fxreduce.passes.scale_cat import ScaleCat

Forward = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.wide, self.one = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.norm, self.inner = nn.BatchNorm2d(6), nn.BatchNorm2d(4)
        self.both = nn.BatchNorm2d(8)
        self.gain = nn.Parameter(torch.rand(6, 1, 1))
        self.small = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 5, dtype=torch.float64)


def run(forward: Forward) -> tuple[nn.Module, PassResult]:
    model = randomised(Model(forward))
    return model, rewritten(ScaleCat(), model, image())


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(torch.cat([m.wide(x), m.one(x)], 1)),
        lambda m, x: m.norm(torch.cat([m.one(torch.tanh(x)), m.wide(x)], -3)),
        lambda m, x: torch.cat([m.wide(x), m.one(x)], 1) * m.gain,
        lambda m, x: torch.cat([m.wide(x), m.one(x)], 1).mul_(m.gain),
        lambda m, x: m.both(torch.cat([m.inner(x), m.one(x)], 1)),
        lambda m, x: m.both(torch.cat([m.one(x), m.one(torch.tanh(x))], 1)) + m.one(x).mean(),
    ],
)
def test_each_operand_takes_its_share(forward: Forward) -> None:
    model, result = run(forward)
    assert not result.refusals
    assert Counter(edit.action for edit in result.edits) == Counter(created=2, replaced=3)
    exported = ScaleCat().run(capture(export(model, (image(),))))
    x = image()
    assert_close(model(x), exported.graph_module(x))
    assert exported.modified


def test_the_concatenation_stays_and_the_paths_too() -> None:
    _, result = run(lambda m, x: m.norm(torch.cat([m.wide(x), m.one(x)], 1)))
    names = [label(node) for node in result.graph_module.graph.nodes]
    assert names == ["x", "wide", "one", "cat", "output"]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda m, x: m.both(torch.cat([torch.tanh(x), m.one(x)], 1)),
            "no affine operator computes tanh of the concatenation",
        ),
        (
            lambda m, x: m.norm(y := torch.cat([m.wide(x), m.one(x)], 1)) * y.mean(),
            "cat has 2 readers",
        ),
        (
            lambda m, x: m.norm(torch.cat([m.wide(x), y := m.one(x)], 1)) * y.mean(),
            "one is read 2 times",
        ),
        (lambda m, x: m.both(torch.cat([y := m.one(x), y], 1)), "one is read 2 times"),
        (lambda m, x: m.both(torch.cat([x * 2, m.one(x)], 1)), "do not tell how many channels"),
        (
            lambda m, x: m.both(torch.cat([m.one(x), x.mul_(m.small)], 1)),
            "it overwrites a tensor that others read",
        ),
    ],
)
def test_what_is_not_safe_stays(forward: Forward, reason: str) -> None:
    _, result = run(forward)
    assert not result.modified
    assert [reason in refusal.reason for refusal in result.refusals] == [True]


def test_a_scale_along_another_axis_is_no_match() -> None:
    _, result = run(lambda m, x: m.inner(torch.cat([m.one(x), m.one(x)], 2)))
    assert not result.modified
    assert not result.refusals


@given(concatenated())
def test_random_scales_behind_concatenations_move_exactly(drawn: Concatenated) -> None:
    model, x = drawn
    graph_module = capture(model, x)
    before = state(graph_module)
    result = ScaleCat().run(graph_module)
    assert_unchanged(graph_module, before)
    assert_close(model(x), result.graph_module(x))
