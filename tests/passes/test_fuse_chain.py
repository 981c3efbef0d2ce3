"""Chains are merged where that is exact and pays; each refusal says why not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, randomised
from networks import Wiring
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.graph.capture import capture
from fxreduce.graph.modules import BorderedConv, ChannelAffine
from fxreduce.graph.recorder import Recorder
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_chain import FuseChain, find_chains


def fused(model: nn.Module, x: Tensor | None = None) -> PassResult:
    return FuseChain().run(capture(randomised(model), x))


def classes(graph_module: GraphModule) -> list[type]:
    called = (node for node in graph_module.graph.nodes if node.op == "call_module")
    return [type(graph_module.get_submodule(str(node.target))) for node in called]


def check(model: nn.Module, x: Tensor, after: list[type], refusals: list[str]) -> PassResult:
    """The classes of the calls after merging, the reasons of the refusals, and equal outputs."""
    result = fused(model, x)
    assert classes(result.graph_module) == after
    assert len(result.refusals) == len(refusals)
    for refusal, reason in zip(result.refusals, refusals, strict=True):
        assert reason in refusal.reason
        assert refusal.rewrite == "fuse_chain"
    assert_close(model(x), result.graph_module(x))
    return result


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("layers", "after"),
    [
        ([nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)], [nn.Conv2d]),
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)], [nn.Conv2d]),
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)], [BorderedConv]),
        ([nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm2d(6, affine=False)], [nn.Conv2d]),
        ([nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2), nn.BatchNorm2d(6)], [nn.ConvTranspose2d]),
        ([nn.ConvTranspose2d(4, 8, 2, 2), nn.Conv2d(8, 2, 1)], [nn.ConvTranspose2d]),
        ([nn.Conv2d(4, 8, 1, bias=False), nn.ConvTranspose2d(8, 2, 2, 2)], [nn.ConvTranspose2d]),
        ([nn.Conv2d(4, 6, 3), nn.AvgPool2d(2)], [nn.Conv2d]),
        ([nn.ZeroPad2d((1, 1, 2, 2)), nn.Conv2d(4, 6, 3, 2)], [nn.Conv2d]),
        ([nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, 2), nn.BatchNorm2d(6)], [nn.Conv2d]),
        ([nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 9, 1)], [nn.Conv2d]),
        ([nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 2, 1, stride=2)], [nn.Conv2d]),
        ([nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4)], [nn.Conv2d]),
        ([nn.BatchNorm2d(4), nn.BatchNorm2d(4)], [ChannelAffine]),
        ([nn.Flatten(), nn.Linear(4 * 8 * 6, 9), nn.Linear(9, 2)], [nn.Flatten, nn.Linear]),
        ([nn.Flatten(), nn.Linear(192, 3), nn.BatchNorm1d(3)], [nn.Flatten, nn.Linear]),
        # An inverted residual whose rectifiers are gone: only the whole of it pays.
        (
            [
                nn.Conv2d(4, 24, 1, bias=False),
                nn.BatchNorm2d(24),
                nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
                nn.BatchNorm2d(24),
                nn.Conv2d(24, 4, 1, bias=False),
                nn.BatchNorm2d(4),
            ],
            [BorderedConv],
        ),
    ],
)
def test_a_chain_becomes_one_operator(layers: list[nn.Module], after: list[type]) -> None:
    result = check(nn.Sequential(*layers), double(2, 4, 8, 6), after, [])
    merged = len(layers) - len(after) + 1
    counts = Counter(edit.action for edit in result.edits)
    assert counts == Counter(created=1, replaced=1, erased=merged - 1) + Counter()


@pytest.mark.parametrize(
    ("layers", "after", "reason"),
    [
        (
            [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)],
            [nn.Conv2d, nn.Conv2d],
            "would read beyond that border",
        ),
        (
            [nn.Conv2d(64, 64, (3, 1)), nn.Conv2d(64, 64, (1, 3))],
            [nn.Conv2d, nn.Conv2d],
            "merging does not pay: ",
        ),
        (
            [nn.Conv2d(16, 96, 1), nn.Conv2d(96, 96, 3, groups=96)],
            [nn.Conv2d, nn.Conv2d],
            "merging does not pay: ",
        ),
        (
            [nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2)],
            [nn.Conv2d, nn.ConvTranspose2d],
            "a bias or shift before a transposed convolution reaches each position by another",
        ),
        (
            [nn.AvgPool2d(5, 1), nn.Conv2d(4, 64, 1)],
            [nn.AvgPool2d, nn.Conv2d],
            "merging does not pay: ",
        ),
        (
            [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 64, 3)],
            [nn.ZeroPad2d, nn.Conv2d],
            "merging does not pay: ",
        ),
        (
            [nn.AvgPool2d(2), nn.AvgPool2d(2)],
            [nn.AvgPool2d, nn.AvgPool2d],
            "neither has weights",
        ),
        (
            [nn.Conv2d(4, 4, 1), nn.Linear(6, 6)],
            [nn.Conv2d, nn.Linear],
            "they act on different axes: spatial rank 2 before, 0 after",
        ),
    ],
)
def test_what_is_not_exact_or_does_not_pay_stays_with_the_reason(
    layers: list[nn.Module], after: list[type], reason: str
) -> None:
    channels = getattr(layers[0], "in_channels", 4)
    result = check(nn.Sequential(*layers), double(2, channels, 30, 6), after, [reason])
    assert not result.modified
    assert result.refusals[0].where == "0 → 1"


def test_a_pooling_or_a_pad_alone_stays_what_it_is() -> None:
    layers = [nn.ReLU(), nn.AvgPool2d(2), nn.ReLU(), nn.ZeroPad2d(1), nn.ReLU()]
    result = check(nn.Sequential(*layers), double(2, 3, 4, 6), [*map(type, layers)], [])
    assert not result.modified


def test_operators_that_are_no_neighbours_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    check(model, double(2, 3), [nn.Linear, nn.ReLU, nn.Linear], [])


def test_a_convolution_with_two_readers_is_not_merged_into_either() -> None:
    model = Wiring(
        lambda m, x: m.norm(y := m.conv(x)) * F.relu(y),
        conv=nn.Conv2d(2, 2, 1),
        norm=nn.BatchNorm2d(2),
    )
    check(model, double(1, 2, 3, 3), [nn.Conv2d, nn.BatchNorm2d], [])


def test_tied_weights_are_merged_in_one_place_and_kept_in_the_other() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    norm = nn.Linear(3, 3)
    model = Wiring(
        lambda m, x: m.first(F.relu(m.norm(m.second(x)))), first=first, second=second, norm=norm
    )
    x = double(2, 3)
    result = check(model, x, [nn.Linear, nn.Linear], [])
    assert result.graph_module.first is not result.graph_module.second
    assert_close(first.weight, result.graph_module.first.weight, 0)


def test_a_call_that_overwrites_what_others_read_is_not_merged() -> None:
    model = Wiring(
        lambda m, x: m.conv(x.mul_(m.gain.weight)), conv=nn.Linear(3, 3), gain=nn.Bilinear(1, 1, 3)
    )
    model.gain.weight = nn.Parameter(torch.rand(3))
    x = double(2, 3)
    graph_module = capture(model.double().eval(), x)
    result = FuseChain().run(graph_module)
    assert [refusal.reason for refusal in result.refusals] == [
        "it overwrites a tensor that others read"
    ]
    seen, expected = x.clone(), x.clone()
    assert_close(model(expected), result.graph_module(seen))
    assert_close(expected, seen, 0)


def test_a_merger_reads_its_input_when_the_first_operator_did() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        z = m.conv(y)
        y.mul_(m.gain)
        return m.norm(z) * y

    model = Wiring(forward, conv=nn.Conv2d(2, 2, 1), norm=nn.BatchNorm2d(2))
    model.gain = nn.Parameter(torch.rand(2, 1, 1))
    refused = ["it overwrites a tensor that others read"]
    check(model, double(2, 2, 3, 3), [nn.Conv2d], refused)


def test_a_weight_that_the_graph_overwrites_is_not_baked_in() -> None:
    model = nn.Linear(3, 3)
    model.register_buffer("gain", torch.ones(3))
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.call_method("add_", (graph.get_attr("gain"), 1))
    product = graph.call_function(torch.mul, (x, graph.get_attr("gain")))
    weight = graph.get_attr("weight")
    graph.output(graph.call_function(F.linear, (product, weight)))
    graph_module = capture(GraphModule(model.eval(), graph), torch.randn(2, 3))
    result = FuseChain().run(graph_module)
    assert not result.modified
    assert result.refusals[0].reason == "the graph overwrites gain, which it reads"


def test_numbers_alone_are_not_merged_as_they_do_not_know_their_channels() -> None:
    model = Wiring(lambda m, x: ((x - 0.5) / 0.25).sum(-1))
    result = fused(model, double(2, 5))
    assert not result.modified
    assert "neither has weights" in result.refusals[0].reason
    other = double(3, 7)
    assert_close(model(other), result.graph_module(other))
    integers = Wiring(lambda m, x: m.table(x * 2 + 1), table=nn.Embedding(20, 3))
    merged, ids = fused(integers, torch.arange(4)).graph_module, torch.arange(4)
    assert_close(integers(ids), merged(ids))


def test_numbers_are_merged_into_the_operator_beside_them() -> None:
    model = Wiring(lambda m, x: m.conv((x - 0.5) / 0.25) * 3, conv=nn.Conv2d(2, 3, 3))
    result = fused(model, double(2, 2, 5, 6))
    assert classes(result.graph_module) == [nn.Conv2d]
    other = double(1, 2, 9, 4)
    assert_close(model(other), result.graph_module(other))


def test_a_functional_batch_norm_is_merged() -> None:
    model = Wiring(
        lambda m, x: F.batch_norm(
            m.conv(x), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias
        ),
        conv=nn.Conv2d(2, 3, 3),
        norm=nn.BatchNorm2d(3),
    )
    check(model, double(2, 2, 5, 6), [nn.Conv2d], [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_memory_format_are_kept(dtype: torch.dtype) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    model = model.to(dtype, memory_format=torch.channels_last)
    merged = FuseChain().run(capture(model)).graph_module.get_submodule("0")
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    assert merged.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator, union-attr]
    x = torch.randn(1, 8, 6, 6).to(dtype)
    exact = model.double()(x.double())
    assert_close(exact, merged(x).double(), 8 * torch.finfo(dtype).eps)


def test_shapes_are_kept_for_later_passes() -> None:
    result = fused(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), double(2, 2, 5, 6))
    merged = next(node for node in result.graph_module.graph.nodes if node.op == "call_module")
    assert merged.meta["fxreduce.shape"] == (2, 3, 3, 4)


def test_chains_are_maximal_and_end_where_a_value_has_two_readers() -> None:
    model = Wiring(
        lambda m, x: F.relu(y := m.b(m.a(x))) + m.d(m.c(y)),
        **{name: nn.Linear(3, 3) for name in "abcd"},
    )
    recorder = Recorder(capture(model.eval()), "test")
    assert [[call.node.name for call in chain] for chain in find_chains(recorder)] == [
        ["a", "b"],
        ["c", "d"],
    ]
    assert not recorder.refusals
