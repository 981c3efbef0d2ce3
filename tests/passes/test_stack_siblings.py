"""Operators over one input that are concatenated become one, where that is exact and pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import assert_close, assert_unchanged, counts, randomised, rewritten, state
from hypothesis import given, settings
from strategies import Concatenated, concatenated
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.nodes import label
from fxreduce.operators.cost import FlopsCost
from fxreduce.passes.base import PassResult
from fxreduce.passes.stack_siblings import StackSiblings

Forward = Callable[[Any, Tensor], Tensor]


class Siblings(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.one, self.two = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1, bias=False)
        self.wide, self.other = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.down, self.slim = nn.Conv2d(4, 3, 1, stride=2), nn.Conv2d(4, 3, 3)
        self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 4)
        self.norm, self.next = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 5, dtype=torch.float64)


def run(forward: Forward, x: Tensor | None = None) -> tuple[nn.Module, PassResult]:
    x = image() if x is None else x
    model = randomised(Siblings(forward))
    return model, rewritten(StackSiblings(), model, x)


@pytest.mark.parametrize(
    ("forward", "kept"),
    [
        (lambda m, x: torch.cat([m.one(x), m.two(x)], 1), 0),
        (lambda m, x: torch.cat((m.two(x), m.one(x)), dim=-3), 0),
        (lambda m, x: torch.concat([m.wide(x), m.other(x)], 1), 0),
        (lambda m, x: torch.cat([m.left(x), m.right(x)], -1), 0),
        (lambda m, x: torch.cat([torch.tanh(x), m.one(x), m.two(x)], 1), 1),
        (lambda m, x: torch.cat([m.one(x), m.two(x), x], 1), 1),
        (lambda m, x: torch.cat([x, m.wide(x), m.other(x), torch.tanh(x)], 1), 1),
    ],
)
def test_neighbours_become_one_operator(forward: Forward, kept: int) -> None:
    model, result = run(forward)
    assert not result.refusals
    assert counts(result) == Counter(created=1 + kept, replaced=1, erased=2)
    exported = StackSiblings().run(capture(export(model, (image(),))))
    x = image()
    assert_close(model(x), exported.graph_module(x))
    assert counts(exported) == counts(result)
    before = export(model, (image(),)).graph
    assert sum("cat" in str(node.target) for node in before.nodes) == 1


def test_three_neighbours_become_one() -> None:
    _, result = run(lambda m, x: torch.cat([m.one(x), m.two(x), m.next(x)], 1))
    assert counts(result) == Counter(created=1, replaced=1, erased=3)
    names = [label(node) for node in result.graph_module.graph.nodes]
    assert names == ["x", "one", "output"]


def test_two_pairs_become_two_operators_and_know_their_shapes() -> None:
    _, result = run(lambda m, x: torch.cat([m.one(x), m.two(x), m.wide(x), m.other(x)], 1))
    nodes = [node for node in result.graph_module.graph.nodes if node.op != "output"]
    assert {label(node): node.meta["fxreduce.shape"] for node in nodes} == {
        "x": (2, 4, 6, 5),
        "one": (2, 8, 6, 5),
        "wide": (2, 8, 6, 5),
        "cat_1": (2, 16, 6, 5),
    }


def test_a_module_that_is_called_twice_keeps_its_other_call() -> None:
    _, result = run(lambda m, x: torch.cat([m.one(x), m.two(x), m.one(torch.tanh(x))], 1))
    assert counts(result) == Counter(created=2, replaced=1, erased=2)
    names = [label(node) for node in result.graph_module.graph.nodes]
    assert sorted(names) == ["cat_1", "one", "one_1", "output", "tanh", "x"]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: torch.cat([(y := m.one(x)), m.two(x)], 1) * y.sum(), "one is read 2 times"),
        (lambda m, x: torch.cat([(y := m.one(x)), y], 1), "one is read 2 times"),
        (lambda m, x: torch.cat([m.down(x), m.one(x[:, :, ::2, ::2])], 1), None),
        (
            lambda m, x: torch.cat([m.down(y := x[:, :, :1, :1]), m.one(y)], 1),
            "the branches have strides (2, 2) and (1, 1)",
        ),
        (
            lambda m, x: torch.cat([m.one(x), m.next(x)], 0),
            None,
        ),
        (lambda m, x: torch.cat([m.left(x), m.right(x)[..., :3]], 1), None),
        (lambda m, x: torch.cat([m.one(x), torch.tanh(x), m.two(x)], 1), None),
        (lambda m, x: torch.cat([x * 2, x * 3], 1), "do not tell how many channels"),
        (
            lambda m, x: torch.cat([m.norm(x), x.mul_(m.gain)], 1),
            "it overwrites a tensor that others read",
        ),
    ],
)
def test_what_is_not_exact_or_not_safe_stays(forward: Forward, reason: str | None) -> None:
    _, result = run(forward)
    assert not result.modified
    found = [refusal.reason for refusal in result.refusals]
    assert found == [] if reason is None else [reason in each for each in found] == [True]


def test_an_input_overwritten_between_the_siblings_is_two_inputs() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        first = m.one(y)
        y.mul_(2)
        return torch.cat([first, m.two(y)], 1)

    _, result = run(forward)
    (refusal,) = result.refusals
    assert refusal.reason == "tanh is overwritten in place between the siblings"


def test_a_kernel_that_would_hold_mostly_zeros_is_refused_with_both_figures() -> None:
    class Fire(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.wide = nn.Conv2d(16, 64, 1), nn.Conv2d(16, 64, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(x), self.wide(x)], 1)

    result = StackSiblings().run(capture(Fire().eval(), torch.randn(1, 16, 10, 10)))
    stacked = (9 * 16 * 128 + 16 * (16 + 128)) * 100
    copy = (128 + 16 * 2 * 128) * 100
    apart = (10 * 16 * 64 + 2 * 16 * (16 + 64)) * 100 + copy
    assert [refusal.reason for refusal in result.refusals] == [
        f"merging does not pay: {stacked / 1e6:.4g} M merged, {apart / 1e6:.4g} M apart (flops)"
    ]


@given(concatenated())
def test_random_siblings_are_stacked_exactly(drawn: Concatenated) -> None:
    model, x = drawn
    graph_module = capture(model, x)
    before = state(graph_module)
    result = StackSiblings().run(graph_module)
    assert_unchanged(graph_module, before)
    assert_close(model(x), result.graph_module(x))


@settings(max_examples=settings().max_examples // 7)  # an export takes a second
@given(concatenated())
def test_random_exported_siblings_are_merged_exactly(drawn: Concatenated) -> None:
    model, x = drawn
    assert_close(model(x), fxreduce.fuse(export(model, (x,)))(x))


def test_squeezenet_stacks_linear_siblings_where_memory_costs_more_than_arithmetic() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = randomised(models.squeezenet1_1())
    sites = [f"features.3.expand{size}_activation" for size in ("1x1", "3x3")]
    linear = fxreduce.linearize(model, sites)
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    captured = capture(linear, x)
    (refusal,) = StackSiblings().run(captured).refusals
    assert refusal.where == "features.3.expand1x1 | features.3.expand3x3"
    result = StackSiblings(FlopsCost(per_element=1000)).run(captured)
    assert counts(result) == Counter(created=1, replaced=1, erased=2)
    assert_close(linear(x), result.graph_module(x))
