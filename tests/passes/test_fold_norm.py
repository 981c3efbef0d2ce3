"""A norm's affine part goes into what reads it, wherever all of that can take it."""

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
from strategies import normed_tokens
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule

from fxreduce.graph.capture import capture
from fxreduce.graph.norms import read_norm
from fxreduce.passes.base import PassResult
from fxreduce.passes.fold_norm import FoldNorm

Forward = Callable[[Any, Tensor], Any]
WIDTH = 4


class Normed(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.norm, self.rms = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.wide = nn.LayerNorm((3, WIDTH))
        self.query, self.key = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 5, bias=False)
        self.conv, self.padded = nn.Conv1d(WIDTH, 2, 2), nn.Conv1d(WIDTH, 2, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def tokens() -> Tensor:
    return torch.randn(2, 3, WIDTH, dtype=torch.float64)


def run(forward: Forward, *, exported: bool = False) -> tuple[nn.Module, PassResult]:
    model, x = randomised(Normed(forward)), tokens()
    for norm in (model.norm, model.rms, model.wide):
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    graph_module = capture(export(model, (x,))) if exported else capture(model, x)
    result = FoldNorm().run(graph_module)
    assert_close(model(x.clone()), result.graph_module(x.clone()))
    return model, result


def norms_with_affine(graph_module: GraphModule) -> list[str]:
    read = {node.name: read_norm(graph_module, node) for node in graph_module.graph.nodes}
    return [name for name, norm in read.items() if norm is not None]


@given(normed_tokens())
def test_the_outputs_stay_and_every_reader_is_made_anew(drawn: tuple[Network, Tensor, int]) -> None:
    net, x, readers = drawn
    graph_module = capture(net, x)
    before = state(graph_module)
    result = FoldNorm().run(graph_module)
    assert_unchanged(graph_module, before)
    assert_close(net(x), result.graph_module(x))
    assert not result.refusals
    counts = Counter(edit.action for edit in result.edits)
    assert counts == Counter(created=readers + 1, replaced=readers + 1)
    assert not FoldNorm().run(result.graph_module).modified


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(
    ("forward", "readers"),
    [
        (lambda m, x: m.query(m.norm(x)), 1),
        (lambda m, x: m.query(m.rms(x)), 1),
        (lambda m, x: m.query(F.layer_norm(x, (WIDTH,), m.gain, None, 1e-3)), 1),
        (lambda m, x: m.query(F.layer_norm(x, (WIDTH,), bias=m.gain)), 1),
        (lambda m, x: m.query(F.rms_norm(x, (WIDTH,), m.gain)), 1),
        (lambda m, x: m.query(torch.native_layer_norm(x, [WIDTH], m.gain, m.gain, 1e-5)[0]), 1),
        (lambda m, x: (m.query(y := m.norm(x)), m.key(y)), 2),
        (lambda m, x: m.query(y := m.norm(x)).reshape(y.shape[0], -1), 1),
        (lambda m, x: m.conv(m.norm(x).transpose(1, 2)), 1),
        (lambda m, x: m.padded(m.rms(x).transpose(1, 2)), 1),
        (lambda m, x: m.norm(x) * m.gain, 1),
        (lambda m, x: m.norm(x) * 2, 1),
    ],
)
def test_affine_parts_that_go_into_their_readers(
    forward: Forward, readers: int, exported: bool
) -> None:
    _, result = run(forward, exported=exported)
    assert not result.refusals
    assert not norms_with_affine(result.graph_module)
    counts = Counter(edit.action for edit in result.edits)
    assert (counts["created"], counts["replaced"]) == (readers + 1, readers + 1)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.norm(x), "output reads it: not an affine operator"),
        (lambda m, x: (m.query(y := m.norm(x)), y), "output reads it: not an affine operator"),
        (lambda m, x: m.query(torch.tanh(m.norm(x))), "tanh reads it: not an affine operator"),
        (lambda m, x: m.query(m.norm(x)[:, :1]) + m.norm(x).sum(), "sum_1 reads it"),
        (lambda m, x: m.query(m.wide(x)), "it normalises 2 axes together"),
        (
            lambda m, x: m.padded(m.norm(x).transpose(1, 2)),
            "padded reads it: it pads with zeros, which the norm's shift would have to leave out",
        ),
        (
            lambda m, x: m.query(m.norm(x).view(2, WIDTH, 3).transpose(1, 2)),
            "query reads it: channels cannot be told apart behind view, transpose",
        ),
        (
            lambda m, x: m.query(m.norm(x).reshape(x.shape[0], 3, WIDTH)),
            "query reads it: the arguments of reshape are computed by the graph",
        ),
        (lambda m, x: m.query(F.layer_norm(x, (WIDTH,), x[0, 0])), "is computed by the graph"),
        (
            lambda m, x: (y := torch.native_layer_norm(x, [WIDTH], m.gain, None, 1e-5))[0] * y[1],
            "its mean or its spread is read as well",
        ),
    ],
)
def test_a_norm_keeps_its_affine_part_where_a_reader_cannot_take_it(
    forward: Forward, reason: str
) -> None:
    _, result = run(forward)
    assert reason in result.refusals[-1].reason
    assert norms_with_affine(result.graph_module)


def test_a_shared_norm_and_a_shared_linear_keep_their_weights_for_the_other_call() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.query(m.norm(x)), m.norm(torch.tanh(x)), m.query(torch.sin(x))

    model, result = run(forward)
    assert [refusal.reason for refusal in result.refusals] == [
        "output reads it: not an affine operator"
    ]
    called = [n.target for n in result.graph_module.graph.nodes if n.op == "call_module"]
    assert called == ["norm_1", "query_1", "norm", "query"]
    assert result.graph_module.get_submodule("norm") is not model.norm  # a copy is captured
    assert result.graph_module.get_submodule("norm_1").weight is None


def test_hooks_overridden_forwards_and_overwritten_constants_are_refused() -> None:
    class Own(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)).double().eval()
    graph_module = capture(model, tokens())
    own = Own(WIDTH).double().eval()
    graph_module.add_module("0", own)
    assert [r.reason for r in FoldNorm().run(graph_module).refusals] == [
        "Own overrides the forward of LayerNorm"
    ]
    graph_module = capture(model, tokens())
    graph_module.get_submodule("0").register_forward_hook(lambda *_: None)
    assert [r.reason for r in FoldNorm().run(graph_module).refusals] == ["0 has forward hooks"]

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gain", torch.ones(WIDTH))
            self.linear = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(F.layer_norm(x, (WIDTH,), self.gain))
            self.gain.add_(1)
            return y

    result = FoldNorm().run(capture(Growing().double().eval(), tokens()))
    assert [r.reason for r in result.refusals] == ["the graph overwrites gain, which it reads"]


def test_weights_keep_their_dtype_and_stay_frozen_and_mixed_ones_are_refused() -> None:
    model = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)).eval()
    model.requires_grad_(False)
    result = FoldNorm().run(capture(model.bfloat16()))
    weights = list(result.graph_module.parameters())
    assert [(w.dtype, w.requires_grad) for w in weights] == [(torch.bfloat16, False)] * 2
    model[0].float()
    result = FoldNorm().run(capture(model))
    assert [r.reason for r in result.refusals] == [
        "1 reads it: its weights are torch.bfloat16, the norm's torch.float32"
    ]
