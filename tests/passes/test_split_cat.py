"""Operators over a concatenation are split off to its operands, where they merge and that pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import assert_close, assert_unchanged, counts, randomised, rewritten, state
from hypothesis import given
from strategies import Concatenated, concatenated
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.count import count_affine
from fxreduce.graph.nodes import label
from fxreduce.passes.base import PassResult
from fxreduce.passes.split_cat import SplitCat

Forward = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.one, self.wide = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.depth, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.join, self.few = nn.Conv2d(16, 2, 1), nn.Conv2d(12, 2, 1)
        self.step, self.triple = nn.Conv2d(16, 2, 1, stride=2), nn.Conv2d(20, 3, 1)
        self.grouped, self.spread = nn.Conv2d(16, 2, 1, groups=2), nn.Conv2d(16, 2, 3, padding=1)
        self.many = nn.Conv2d(12, 512, 1)
        self.left, self.right = nn.Linear(5, 8), nn.Linear(5, 8)
        self.linear = nn.Linear(16, 2)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 5, dtype=torch.float64)


def run(forward: Forward, shapes: bool = True) -> tuple[nn.Module, PassResult]:
    model = randomised(Model(forward))
    return model, rewritten(SplitCat(), model, image(), shapes=shapes)


@pytest.mark.parametrize(
    ("forward", "terms", "created", "erased"),
    [
        # Both operands go: two operators and their sum.
        (lambda m, x: m.join(torch.cat([m.one(x), m.wide(x)], 1)), 2, 3, 3),
        (lambda m, x: m.step(torch.cat([m.wide(x), m.one(torch.tanh(x))], 1)), 2, 3, 3),
        (lambda m, x: m.linear(torch.cat([m.left(x), m.right(x)], -1)), 2, 3, 3),
        (lambda m, x: m.linear(torch.concat((m.left(x), m.right(x)), dim=3)), 2, 3, 3),
        # One goes, the other is read as it is.
        (lambda m, x: m.few(torch.cat([m.one(x), torch.tanh(x)], 1)), 2, 3, 2),
        (lambda m, x: m.few(torch.cat([torch.tanh(x), m.one(x)], 1)), 2, 3, 2),
        # Two go, the others are laid behind one another.
        (
            lambda m, x: m.triple(torch.cat([torch.tanh(x), m.wide(x), x, m.norm(x)], 1)),
            3,
            6,
            3,
        ),
    ],
)
def test_columns_merge_with_the_operators_before_the_concatenation(
    forward: Forward, terms: int, created: int, erased: int
) -> None:
    model, result = run(forward)
    assert counts(result) == Counter(created=created, replaced=1, erased=erased)
    operators = [n for n in result.graph_module.graph.nodes if n.op == "call_module"]
    assert len(operators) == terms
    exported = SplitCat().run(capture(export(model, (image(),))))
    x = image()
    assert_close(model(x), exported.graph_module(x))
    assert counts(exported) == counts(result)


def test_what_is_created_knows_its_shape() -> None:
    _, result = run(lambda m, x: m.few(torch.cat([m.one(x), torch.tanh(x)], 1)))
    nodes = [node for node in result.graph_module.graph.nodes if node.op != "output"]
    assert {label(node): node.meta["fxreduce.shape"] for node in nodes} == {
        "x": (2, 4, 6, 5),
        "tanh": (2, 4, 6, 5),
        "one": (2, 2, 6, 5),
        "few": (2, 2, 6, 5),
        "add": (2, 2, 6, 5),
    }


def test_a_single_unknown_width_is_what_the_others_leave() -> None:
    _, result = run(lambda m, x: m.few(torch.cat([m.one(x), torch.tanh(x)], 1)), shapes=False)
    assert result.modified
    _, result = run(
        lambda m, x: m.triple(torch.cat([m.one(x), torch.tanh(x), torch.cat([x, x], 1)], 1)),
        shapes=False,
    )
    (refusal,) = result.refusals
    assert "nothing tells how many channels each operand of cat_1 has" in refusal.reason


def test_an_operand_overwritten_behind_the_concatenation_is_read_before() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        whole = torch.cat([m.one(x), y], 1)
        y.mul_(2)
        return m.few(whole) + y.mean()

    _, result = run(forward)
    assert result.modified


def test_a_module_that_is_called_twice_keeps_its_other_call() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.join(torch.cat([m.one(x), m.one(torch.tanh(x))], 1)) + m.one(x)[:, :2]

    _, result = run(forward)
    assert counts(result) == Counter(created=3, replaced=1, erased=3)
    assert result.graph_module.get_submodule("one").out_channels == 8


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda m, x: m.join(y := torch.cat([m.one(x), m.wide(x)], 1)) * y.mean(),
            "cat has 2 readers",
        ),
        (
            lambda m, x: m.few(torch.cat([y := m.one(x), torch.tanh(x)], 1)) * y.mean(),
            "one is read 2 times",
        ),
        (lambda m, x: m.join(torch.cat([y := m.one(x), y], 1)), "one is read 2 times"),
        (lambda m, x: m.grouped(torch.cat([m.one(x), m.wide(x)], 1)), "it has 2 groups"),
        (lambda m, x: m.many(torch.cat([m.one(x), torch.tanh(x)], 1)), "merging does not pay"),
        (
            lambda m, x: m.few(torch.cat([x.mul_(m.gain), torch.tanh(x), torch.exp(x)], 1)),
            "it overwrites a tensor that others read",
        ),
    ],
)
def test_what_is_not_safe_or_not_cheaper_stays(forward: Forward, reason: str) -> None:
    _, result = run(forward)
    assert not result.modified
    assert [reason in refusal.reason for refusal in result.refusals] == [True]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.spread(torch.cat([m.one(x), m.wide(x)], 1)),
        lambda m, x: m.few(torch.cat([torch.tanh(x), x, x], 1)),
        lambda m, x: m.norm(torch.cat([m.norm(x), m.depth(x)], 0)),
    ],
)
def test_other_kernels_axes_and_operands_are_no_match(forward: Forward) -> None:
    _, result = run(forward)
    assert not result.modified
    assert not result.refusals


def test_a_split_that_costs_more_is_refused_with_both_figures() -> None:
    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(64, 4, 3, padding=1), nn.Conv2d(8, 64, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(torch.cat([self.down(x), torch.tanh(x)[:, :4]], 1))

    result = SplitCat().run(capture(Widening().eval(), torch.randn(1, 64, 10, 10)))
    apart = 9 * 64 * 4 + 16 * 68 + 8 * 64 + 16 * 72 + (8 + 16 * 16)
    split = 9 * 64 * 64 + 16 * 128 + 4 * 64 + 16 * 68 + (64 + 16 * 128)
    assert [refusal.reason for refusal in result.refusals] == [
        f"merging does not pay: {split / 1e4:.4g} M merged, {apart / 10:.4g} k apart (flops)"
    ]


def test_a_producer_of_another_dtype_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.join = nn.Linear(4, 8).half(), nn.Linear(12, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.join(torch.cat([self.short(y), x], 1))

    inputs = torch.randn(3, 4), torch.randn(3, 4).half()
    result = SplitCat().run(capture(Mixed().eval(), inputs))
    assert [r.reason for r in result.refusals] == ["short works in torch.float16 on cpu"]


@given(concatenated())
def test_random_operators_over_concatenations_are_split_exactly(drawn: Concatenated) -> None:
    model, x = drawn
    graph_module = capture(model, x)
    before = state(graph_module)
    result = SplitCat().run(graph_module)
    assert_unchanged(graph_module, before)
    assert_close(model(x), result.graph_module(x))


@given(concatenated())
def test_all_merges_together_keep_random_concatenations(drawn: Concatenated) -> None:
    model, x = drawn
    fused = fxreduce.fuse(model, example_inputs=x)
    assert_close(model(x), fused(x))
    assert_close(model(x), fxreduce.fuse(fused, example_inputs=x)(x))


def test_squeezenet_without_rectifiers_around_a_fire_has_one_convolution_for_three() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = randomised(models.squeezenet1_1())
    sites = [f"features.3.expand{size}_activation" for size in ("1x1", "3x3")]
    linear = fxreduce.linearize(model, sites)
    x = torch.randn(1, 3, 65, 65, dtype=torch.float64)
    before, fused = count_affine(capture(linear, x)), fxreduce.fuse(linear, example_inputs=x)
    after = count_affine(fused)
    # Two expansions of 16 to 64 channels and a squeeze of 128 to 16: one 3x3 of 16 to 16.
    assert before.operators - after.operators == 2
    assert before.multiply_adds is not None
    assert after.multiply_adds is not None
    pixels = 16 * 16
    assert before.multiply_adds - after.multiply_adds == pixels * (
        10 * 16 * 64 + 128 * 16 - 9 * 16 * 16
    )
    assert_close(linear(x), fused(x))
