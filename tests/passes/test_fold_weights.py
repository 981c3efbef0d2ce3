"""Weights that a graph computes from parameters alone become constants, so that they merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, counts, randomised, rewritten
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule
from torch.nn.utils import parametrizations

import fxreduce
from fxreduce.graph.nodes import operation
from fxreduce.passes.fold_weights import FoldWeights

Function = Callable[[Any, Tensor], Tensor]


class Computing(nn.Module):
    """A convolution whose weight `function` computes, and a batch-norm."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.rand(4, 1, 1, 1) + 0.5)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.function(self, x), self.conv.bias))


def standardised(m: Any, _: Tensor) -> Tensor:
    """As timm's ScaledStdConv2d does it."""
    flat = m.conv.weight.reshape(1, 4, -1)
    gain = (m.gain * 0.2).view(-1)
    return F.batch_norm(flat, None, None, gain, training=True).reshape_as(m.conv.weight)


def centred(m: Any, _: Tensor) -> Tensor:
    weight = m.conv.weight
    deviation, mean = torch.std_mean(weight, (1, 2, 3), keepdim=True)
    return (weight - mean) / (deviation + 1e-6)


def normalised(m: Any, _: Tensor) -> Tensor:
    return F.normalize(m.conv.weight, dim=1) * m.gain.expand_as(m.conv.weight) * m.scale


FUNCTIONS = [standardised, centred, normalised]
X = torch.randn(2, 3, 6, 6, dtype=torch.float64)


def dialects(model: nn.Module) -> tuple[Any, ...]:
    return model, export(model, (X,))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_computed_weight_merges_in_every_dialect(function: Function) -> None:
    model = randomised(Computing(function))
    for each in dialects(model):
        fused = fxreduce.fuse(each, example_inputs=X)
        report = fxreduce.report(fused)
        assert (report.operators_before, report.operators_after) == (2, 1)
        assert_close(model(X), fused(X))
        assert report.parameters["conv.weight"] == report.parameters["norm.bias"] != ()


def test_it_is_computed_once_and_what_computed_it_is_gone() -> None:
    result = rewritten(FoldWeights(), randomised(Computing(centred)), X)
    assert result.modified
    assert not result.refusals
    calls = [n.name for n in result.graph_module.graph.nodes if n.op.startswith("call_function")]
    assert calls == ["conv2d"]
    assert not FoldWeights().run(result.graph_module).modified


def test_a_folded_weight_is_trained_where_what_it_came_from_is() -> None:
    model = randomised(Computing(centred))
    for trained in (True, False):
        model.conv.weight.requires_grad_(trained)
        result = FoldWeights().run(fxreduce.capture(model))
        assert result.graph_module.get_parameter("weight").requires_grad is trained


def moved(m: Any, _: Tensor) -> Tensor:
    m.scale.add_(1)
    return m.conv.weight * m.scale


def noisy(m: Any, _: Tensor) -> Tensor:
    return m.conv.weight + torch.randn_like(m.conv.weight)


def of_the_input(m: Any, x: Tensor) -> Tensor:
    return m.conv.weight * x.mean()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_it_is_folded_out_of_a_decomposed_export_too(function: Function) -> None:
    model = randomised(Computing(function))
    decomposed = fxreduce.capture(export(model, (X,)).run_decompositions(), X)
    folded = FoldWeights().run(decomposed).graph_module
    constants = [n.target for n in folded.graph.find_nodes(op="get_attr") if n.users]
    assert not {"conv.weight", "gain"} & set(constants)
    assert_close(model(X), folded(X))


@pytest.mark.parametrize("function", [moved, noisy, of_the_input])
def test_what_is_random_written_or_of_the_input_stays(function: Function) -> None:
    result = FoldWeights().run(fxreduce.capture(randomised(Computing(function))))
    assert not result.modified


def test_a_parameter_that_is_the_weight_itself_stays_where_it_is() -> None:
    model = randomised(Computing(lambda m, _: m.conv.weight))
    assert not FoldWeights().run(fxreduce.capture(model, X)).modified


@pytest.mark.parametrize(
    "parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_a_parametrised_weight_merges_in_an_exported_graph(
    parametrise: Callable[[nn.Module], nn.Module],
) -> None:
    model = randomised(nn.Sequential(parametrise(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    for each in dialects(model):
        fused = fxreduce.fuse(each, example_inputs=X)
        assert fxreduce.report(fused).operators_after == 1
        assert_close(model(X), fused(X))


def test_tied_weights_are_computed_in_each_place_and_both_right() -> None:
    class Twice(Computing):
        def forward(self, x: Tensor) -> Tensor:
            weight = centred(self, x)
            y = F.conv2d(x, weight, self.conv.bias)
            return self.norm(y) + F.conv2d(x.flip(0), weight) * F.relu(y)

    model = randomised(Twice(centred))
    rewritten_once = rewritten(FoldWeights(), model, X)
    assert counts(rewritten_once)["created"] == 1
    assert_close(model(X), fxreduce.fuse(model, example_inputs=X)(X))


def test_under_torch_compile_it_follows_the_weights() -> None:
    graphs: list[GraphModule] = []

    def inner(graph_module: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph_module)
        return graph_module.forward

    model = randomised(Computing(normalised))
    torch.compiler.reset()
    compiled = torch.compile(model, backend=fxreduce.backend(inner), fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert_close(model(X), compiled(X))
            model.gain.mul_(1.5)
    (merged,) = graphs
    calls = [node for node in merged.graph.nodes if node.op.startswith("call_")]
    assert [operation(node) for node in calls] == ["conv2d"]
