"""Calls that return their input are dropped, those that do more are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, calling
from torch import Tensor, nn
from torch.export import export
from torch.fx import Graph, GraphModule
from torchvision.ops import StochasticDepth, stochastic_depth

from fxreduce.graph.capture import capture
from fxreduce.passes.drop_identities import DropIdentities


def dropped(graph_module: GraphModule) -> int:
    result = DropIdentities().run(graph_module)
    assert {edit.action for edit in result.edits} <= {"replaced"}
    assert not result.refusals
    return len(result.edits)


def function(target: Any, *args: Any, **kwargs: Any) -> GraphModule:
    graph = Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"), *args), kwargs))
    return GraphModule({}, graph)


MODULES = [
    nn.Identity(),
    nn.Dropout(),
    nn.Dropout(inplace=True),
    nn.Dropout1d(),
    nn.Dropout2d(),
    nn.Dropout3d(),
    nn.AlphaDropout(),
    nn.FeatureAlphaDropout(),
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_identities_and_dropout_in_eval_are_dropped(module: nn.Module) -> None:
    assert dropped(calling(module)) == 1


@pytest.mark.parametrize("module", [each for each in MODULES if type(each) is not nn.Identity])
def test_dropout_in_train_mode_stays(module: nn.Module) -> None:
    graph_module = calling(module)
    graph_module.get_submodule("op").train()
    assert dropped(graph_module) == 0
    module.eval()


class Noisy(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Bias(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def hooked() -> nn.Module:
    module = nn.Identity()
    module.register_forward_hook(lambda module, args, output: output + 1)
    return module


@pytest.mark.parametrize("module", [Noisy(), Bias(), hooked(), nn.ReLU()])
def test_a_module_that_computes_or_has_hooks_stays(module: nn.Module) -> None:
    assert dropped(calling(module)) == 0


@pytest.mark.parametrize(
    "graph_module",
    [
        function(F.dropout, 0.5, False),
        function(F.dropout, p=0.5, training=False, inplace=True),
        function(F.dropout2d, training=False),
        function(F.alpha_dropout, 0.5),
        function(F.feature_alpha_dropout, training=False),
        function(torch.dropout, 0.5, False),
        function(torch.dropout_, 0.5, False),
        function(torch.ops.aten.dropout.default, 0.5, False),
        function(stochastic_depth, 0.5, "row", False),
    ],
)
def test_functional_dropout_that_is_told_not_to_train_is_dropped(graph_module: Any) -> None:
    assert dropped(graph_module) == 1


@pytest.mark.parametrize(
    "graph_module",
    [
        function(F.dropout),  # it trains by default
        function(F.dropout2d, 0.5),
        function(F.dropout, 0.5, True),
        function(torch.dropout, 0.5, True),
        function(F.alpha_dropout, 0.5, True),
        function(stochastic_depth, 0.5, "row"),
        function(stochastic_depth, 0.5, "row", True),
        function(F.relu, False),
    ],
)
def test_a_function_that_trains_or_computes_stays(graph_module: Any) -> None:
    assert dropped(graph_module) == 0


def test_before_and_after() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), StochasticDepth(0.5, "row"), nn.Identity())
    graph_module, x = capture(model.eval()), torch.randn(2, 3)
    result = DropIdentities().run(graph_module)
    assert [node.name for node in result.graph_module.graph.nodes] == ["input_1", "_0", "output"]
    assert [edit.action for edit in result.edits] == ["replaced"] * 3
    assert_close(model(x), result.graph_module(x), 0)
    exported = DropIdentities().run(capture(export(model, (x,)))).graph_module
    assert not [node for node in exported.graph.nodes if "dropout" in node.name]


def test_a_model_that_returns_its_input_still_does() -> None:
    result = DropIdentities().run(capture(nn.Sequential(nn.Identity(), nn.Dropout()).eval()))
    x = torch.randn(3)
    assert result.graph_module(x) is x
