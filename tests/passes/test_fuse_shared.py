"""What several operators read is merged into them where that pays, and stays where it does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, randomised, rewritten
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import Wiring
from strategies import CHANNELS, images, operators, ranks
from torch import Tensor, nn

from fxreduce.graph.capture import capture
from fxreduce.graph.modules import to_module
from fxreduce.operators.affine import apply
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_shared import FuseShared


def run(model: nn.Module, x: Tensor) -> PassResult:
    return rewritten(FuseShared(), randomised(model), x)


def image(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 8, 8, dtype=torch.float64)


def called(result: PassResult) -> list[str]:
    nodes = result.graph_module.graph.find_nodes(op="call_module", sort=True)
    return sorted(str(node.target) for node in nodes)


def test_a_batch_norm_goes_into_all_convolutions_that_read_it() -> None:
    model = Wiring(
        lambda m, x: torch.cat([m.one(y := m.norm(x)), m.two(y), m.three(y)], 1),
        norm=nn.BatchNorm2d(4),
        one=nn.Conv2d(4, 3, 1),
        two=nn.Conv2d(4, 4, 3, padding=1, groups=2),
        three=nn.Conv2d(4, 5, 1),
    )
    result = run(model, image())
    assert called(result) == ["one", "three", "two"]
    assert not result.refusals
    counts = Counter(edit.action for edit in result.edits)
    assert counts == Counter(created=3, replaced=3, erased=1)


def test_a_narrow_operator_behind_a_wide_one_reads_the_input_of_the_wide_one() -> None:
    model = Wiring(
        lambda m, x: (F.relu(y := m.wide(x)), m.narrow(y)),
        wide=nn.Conv2d(4, 64, 1),
        narrow=nn.Conv2d(64, 4, 1),
    )
    result = run(model, image())
    assert called(result) == ["narrow", "wide"]
    assert result.graph_module.get_submodule("narrow").in_channels == 4
    assert not result.refusals


def test_what_costs_more_in_every_reader_stays_with_both_figures() -> None:
    model = Wiring(
        lambda m, x: m.one(y := m.squeeze(x)) * m.two(y),
        squeeze=nn.Conv2d(64, 4, 1),
        one=nn.Conv2d(4, 64, 3, padding=1),
        two=nn.Conv2d(4, 64, 3, padding=1),
    )
    result = run(model, image(64))
    assert not result.modified
    assert [refusal.where for refusal in result.refusals] == ["squeeze → one", "squeeze → two"]
    reason = result.refusals[0].reason
    assert reason.startswith("squeeze stays for two, so that merging does not pay: ")
    assert reason.endswith("(flops)")


def test_one_reader_that_cannot_absorb_it_does_not_keep_others_from_what_pays() -> None:
    model = Wiring(
        lambda m, x: (m.border(y := m.wide(x)), m.narrow(y)),
        wide=nn.Conv2d(4, 64, 3, padding=1),
        border=nn.Conv2d(64, 4, 3, padding=1),
        narrow=nn.Conv2d(64, 4, 1),
    )
    result = run(model, image())
    assert result.graph_module.get_submodule("narrow").kernel_size == (3, 3)
    (refusal,) = result.refusals
    assert refusal.where == "wide → border"
    assert "would read beyond that border" in refusal.reason


def test_an_input_that_is_overwritten_in_between_is_not_read_later() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.norm(z := F.tanh(x))
        first = m.one(y)
        z.add_(1.0)
        return first, m.two(y)

    model = Wiring(forward, norm=nn.BatchNorm2d(4), one=nn.Conv2d(4, 4, 1), two=nn.Conv2d(4, 4, 1))
    result = run(model, image())
    assert "norm → two" in [refusal.where for refusal in result.refusals]
    assert any("overwritten in place" in refusal.reason for refusal in result.refusals)


@pytest.mark.parametrize("hooked", ["norm", "one"])
def test_hooks_keep_their_calls(hooked: str) -> None:
    model = Wiring(
        lambda m, x: m.one(y := m.norm(x)) + F.relu(y),
        norm=nn.BatchNorm2d(4),
        one=nn.Conv2d(4, 4, 1),
    )
    model.get_submodule(hooked).register_forward_hook(lambda *given: None)
    assert not run(model, image()).modified


def test_numbers_alone_stay() -> None:
    result = run(Wiring(lambda m, x: ((y := x * 2.0) + 1.0, y * 3.0)), image())
    assert not result.modified
    assert all("do not tell how many channels" in refusal.reason for refusal in result.refusals)


def test_a_module_that_is_called_twice_keeps_its_weights_for_the_other_call() -> None:
    model = Wiring(
        lambda m, x: (m.one(y := m.norm(x)), m.one(x), m.two(y)),
        norm=nn.BatchNorm2d(4),
        one=nn.Conv2d(4, 4, 1),
        two=nn.Conv2d(4, 4, 1),
    )
    assert run(model, image()).modified


@given(st.data(), ranks(), st.sampled_from(CHANNELS))
def test_whatever_is_shared_and_whoever_reads_it_the_values_stay(
    data: Any, rank: int, channels: int
) -> None:
    like = torch.empty(0, dtype=torch.float64)
    first = data.draw(operators(rank, channels))
    readers = [data.draw(operators(rank, first.out_channels)) for _ in range(3)]
    x = data.draw(images(channels, rank))
    named = {f"reader{i}": to_module(each, like) for i, each in enumerate(readers)}
    kept = data.draw(st.booleans())

    def forward(m: Any, x: Tensor) -> list[Tensor]:
        y = m.first(x)
        return [m.get_submodule(name)(y) for name in named] + [y] * kept

    model = Wiring(forward, first=to_module(first, like), **named)
    try:
        expected = [apply(each, apply(first, x)) for each in readers]
    except (RuntimeError, ValueError):
        assume(False)
    result = FuseShared().run(capture(model.eval(), x))
    assert_close(expected, result.graph_module(x)[:3])
