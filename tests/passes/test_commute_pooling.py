"""Averages go before pointwise operators, exactly, where fewer positions are left to work on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, assert_unchanged, counts, randomised, rewritten, state
from hypothesis import given, settings
from strategies import Pooled, pooled
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.capture import capture
from fxreduce.graph.count import count_affine
from fxreduce.graph.nodes import label
from fxreduce.passes.base import PassResult
from fxreduce.passes.commute_pooling import CommutePooling
from fxreduce.passes.fuse_chain import FuseChain

Forward = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.point, self.bare = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1, bias=False)
        self.grouped, self.wide = nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(5, 3)
        self.step, self.many = nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 400, 1)
        self.pool, self.odd = nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1)
        self.inside = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.over = nn.AvgPool2d(2, 3, ceil_mode=True)
        self.all = nn.AdaptiveAvgPool2d(1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 5, dtype=torch.float64)


def run(forward: Forward, x: Tensor, shapes: bool = True) -> tuple[nn.Module, PassResult]:
    model = randomised(Model(forward))
    return model, rewritten(CommutePooling(), model, x, shapes=shapes)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.pool(m.point(x)),
        lambda m, x: m.inside(m.point(x)),
        lambda m, x: m.over(m.norm(x)),
        lambda m, x: m.odd(m.bare(x)),
        lambda m, x: m.all(m.grouped(x)),
        lambda m, x: F.avg_pool2d(m.norm(x), (2, 1), padding=(1, 0), count_include_pad=False),
        lambda m, x: F.avg_pool2d(m.bare(x), 3, stride=2, padding=1, divisor_override=5),
        lambda m, x: F.avg_pool2d(m.point(x), 3, ceil_mode=True),
        lambda m, x: F.adaptive_avg_pool2d(m.point(x), (3, 2)),
        lambda m, x: F.adaptive_avg_pool2d(m.point(x), (None, 2)),
        lambda m, x: m.point(x).mean((2, 3)),
        lambda m, x: m.grouped(x).mean((-1, -2)),
        lambda m, x: m.point(x).mean([2, 3], keepdim=True),
        lambda m, x: torch.mean(m.point(x), -1, keepdim=True),
        lambda m, x: m.point(x).mean(2),
        lambda m, x: m.norm(x).mean((0, 2)),
        lambda m, x: m.linear(x).mean(2),
        lambda m, x: m.linear(x).mean(dim=(1, 2), keepdim=True),
        lambda m, x: torch.tanh(x).mul_(m.gain).mean((2, 3)),
        lambda m, x: m.pool(x * m.gain),
        lambda m, x: m.pool(F.conv2d(x, m.point.weight, m.point.bias)),
    ],
)
def test_the_average_goes_first(forward: Forward) -> None:
    model, result = run(forward, image())
    assert not result.refusals
    assert counts(result) == Counter(created=2, replaced=1, erased=1)
    exported = CommutePooling().run(capture(export(model, (image(),))))
    x = image()
    assert_close(model(x), exported.graph_module(x))
    assert counts(exported) == counts(result)


def test_a_chain_of_pointwise_operators_goes_behind_the_average_one_by_one() -> None:
    _, result = run(lambda m, x: m.pool(m.point(m.norm(torch.tanh(x)))), image())
    names = [label(node) for node in result.graph_module.graph.nodes]
    assert names == ["x", "tanh", "pool", "norm", "point", "output"]
    assert counts(result) == Counter(created=4, replaced=2, erased=2)


def test_modules_that_move_keep_their_names_and_their_weights() -> None:
    graph_module = capture(randomised(Model(lambda m, x: m.pool(m.point(x)))), image())
    result = CommutePooling().run(graph_module).graph_module
    assert result.get_submodule("point") is graph_module.get_submodule("point")
    assert result.state_dict().keys() == {"point.weight", "point.bias"}


def test_a_module_that_is_called_twice_moves_with_one_call() -> None:
    model, result = run(
        lambda m, x: m.pool(m.grouped(x)) + torch.tanh(m.grouped(x))[..., :3, :2], image()
    )
    assert counts(result) == Counter(created=2, replaced=1, erased=1)
    assert len(list(result.graph_module.parameters())) == len(list(model.grouped.parameters()))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.odd(m.point(x)), "the bias of point would count where the average counts"),
        (
            lambda m, x: F.avg_pool2d(m.norm(x), 2, divisor_override=3),
            "the bias of norm would count where the average counts padding or has a divisor",
        ),
        (lambda m, x: (y := m.norm(x)).mean((2, 3)) + y.sum(), "norm has 2 readers"),
        (lambda m, x: m.pool(x * 2), "do not tell how many channels"),
        (lambda m, x: m.pool(m.norm(m.wide(x))), "norm merges with wide before it"),
        (lambda m, x: x.mul_(m.gain).mean((2, 3)), "it overwrites a tensor that others read"),
        (lambda m, x: m.point(x).mean((0, 2)), "a convolution needs the axis over which"),
        (lambda m, x: F.avg_pool2d(m.norm(x), 1), "merging does not pay"),
        (lambda m, x: F.adaptive_avg_pool2d(m.norm(x), 9), "merging does not pay"),
    ],
)
def test_what_is_not_exact_or_not_safe_or_not_cheaper_stays(forward: Forward, reason: str) -> None:
    _, result = run(forward, image())
    assert not result.modified
    assert [reason in refusal.reason for refusal in result.refusals] == [True]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.pool(m.wide(x)),
        lambda m, x: m.pool(m.step(x)),
        lambda m, x: m.point(x).mean(1),
        lambda m, x: m.linear(x).mean((2, 3)),
        lambda m, x: m.point(x).mean(),
        lambda m, x: m.point(x).mean((2, 3), dtype=torch.float64),
        lambda m, x: F.avg_pool2d(m.linear(x), 2),
        lambda m, x: F.max_pool2d(m.point(x), 2),
    ],
)
def test_other_operators_and_averages_over_channels_are_no_match(forward: Forward) -> None:
    _, result = run(forward, image())
    assert not result.modified
    assert not result.refusals


def test_more_channels_to_average_than_before_are_refused_with_both_figures() -> None:
    model = nn.Sequential(nn.Conv2d(64, 1, 1), nn.AvgPool2d(2)).eval()
    result = CommutePooling().run(capture(model, torch.randn(1, 64, 8, 8)))
    # Multiply-adds, and 16 for each activation read and written.
    apart = 64 * 64 + 16 * (64 * 64 + 64) + 64 + 16 * (64 + 16)
    first = 64 * 64 + 16 * (64 * 64 + 64 * 16) + 64 * 16 + 16 * (64 * 16 + 16)
    assert [refusal.reason for refusal in result.refusals] == [
        f"merging does not pay: {first / 1e3:.4g} k merged, {apart / 1e3:.4g} k apart (flops)"
    ]


def test_hooks_of_the_average_would_see_other_values() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)).eval()
    model[1].register_forward_hook(lambda *_: None)
    result = CommutePooling().run(capture(model))
    (refusal,) = result.refusals
    assert refusal.reason == "1 has forward hooks, which would see other values"


def test_an_average_over_axes_that_nothing_tells_is_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return self.linear(x).mean(1)

    result = CommutePooling().run(capture(Mean().eval()))
    assert "capture the model with example inputs" in result.refusals[0].reason


def test_without_shapes_an_average_over_image_axes_still_goes_first() -> None:
    for forward in (
        lambda m, x: m.pool(m.point(x)),
        lambda m, x: m.point(x).mean((2, 3)),
        lambda m, x: m.all(m.point(x)),
    ):
        _, result = run(forward, image(), shapes=False)
        assert counts(result) == Counter(created=2, replaced=1, erased=1)


@given(pooled())
def test_random_averages_go_first_exactly(drawn: Pooled) -> None:
    model, x = drawn
    graph_module = capture(model, x)
    before = state(graph_module)
    result = CommutePooling().run(graph_module)
    assert_unchanged(graph_module, before)
    assert_close(model(x), result.graph_module(x))
    assert result.modified or result.refusals


@settings(max_examples=settings().max_examples // 7)  # an export takes a second
@given(pooled())
def test_random_averages_of_an_exported_model_go_first_exactly(drawn: Pooled) -> None:
    model, x = drawn
    assert_close(model(x), fxreduce.fuse(export(model, (x,), strict=False))(x))


def test_fusion_ends_with_the_average_first_and_what_can_be_merged_merged() -> None:
    model = randomised(
        nn.Sequential(
            nn.Conv2d(4, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64),
            nn.Tanh(), nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.AvgPool2d(2), nn.Tanh(),
        )
    )  # fmt: skip
    fused = fxreduce.fuse(model, example_inputs=torch.randn(2, 4, 9, 8, dtype=torch.float64))
    calls = [label(node) for node in fused.graph.nodes if node.op == "call_module"]
    assert calls == ["0", "4", "7", "5", "8"]
    assert [r.reason for r in CommutePooling().run(fused).refusals] == []
    assert not FuseChain().run(fused).modified


def test_densenet_averages_in_its_transitions_before_it_multiplies() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = randomised(torchvision.models.densenet121())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    captured = capture(model, x)
    result = CommutePooling().run(captured)
    assert counts(result) == Counter(created=6, replaced=3, erased=3)
    assert_close(model(x), result.graph_module(x))
    before = count_affine(captured).multiply_adds
    fused = fxreduce.fuse(model, example_inputs=x)
    after = count_affine(fused).multiply_adds
    # Three quarters of the transitions' 1x1 convolutions are saved.
    transitions = [(256, 128, 16), (512, 256, 8), (1024, 512, 4)]
    saved = sum(i * o * n * n * 3 // 4 for i, o, n in transitions)
    assert before is not None
    assert after == before - saved
