"""Rectifiers are deleted or replaced by an affine map; never where others would see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, assert_unchanged, state
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule

from fxreduce.graph.capture import capture
from fxreduce.graph.modules import ChannelAffine
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import ScaleShift, apply
from fxreduce.passes.base import PassResult, run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import PREPARE


def without(model: nn.Module, *sites: str, **maps: ScaleShift) -> PassResult:
    return run_pipeline(capture(model.eval()), (*PREPARE, Linearise(sites, maps)))


def two_layers(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), act, nn.Conv2d(3, 2, 1)).eval()


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU()])
def test_before_conv_act_conv_after_conv_conv(act: nn.Module) -> None:
    model, x = two_layers(act), torch.randn(1, 2, 5, 5)
    before = state(model)
    result = without(model, "1")
    assert_close(model[2](model[0](x)), result.graph_module(x), 0)
    assert [edit.action for edit in result.edits] == ["replaced"]
    assert result.edits[0].why == "1 becomes the identity"
    assert find_sites(result.graph_module) == ()
    assert_unchanged(model, before)


def test_a_map_takes_the_rectifiers_place_channel_by_channel() -> None:
    model, x = two_layers(nn.ReLU()), torch.randn(1, 2, 5, 5)
    fit = ScaleShift(torch.randn(3), torch.randn(3), 2)
    result = run_pipeline(capture(model), (Linearise(("1",), {"1": fit}),))
    assert_close(model[2](apply(fit, model[0](x))), result.graph_module(x), 1e-6)
    assert [edit.action for edit in result.edits] == ["created", "replaced"]
    assert isinstance(result.graph_module.get_submodule("1_linear"), ChannelAffine)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(3, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(self.act(self.fc(x))))


def test_one_call_of_a_shared_rectifier_is_deleted_and_the_other_stays() -> None:
    model, x = Twice().eval(), torch.randn(4, 3)
    first, second = (without(model, name).graph_module for name in ("act", "act#1"))
    assert_close(F.relu(model.fc(model.fc(x))), first(x), 0)
    assert_close(model.fc(F.relu(model.fc(x))), second(x), 0)
    assert [site.name for site in find_sites(first)] == ["act#1"]


def test_the_second_call_of_a_shared_rectifier_gets_a_map_at_a_path_of_its_own() -> None:
    fits = {name: ScaleShift(torch.randn(3), torch.randn(3), 0) for name in ("act", "act#1")}
    model, x = Twice().eval(), torch.randn(4, 3)
    result = run_pipeline(capture(model), (Linearise(tuple(fits), fits),))
    expected = apply(fits["act#1"], model.fc(apply(fits["act"], model.fc(x))))
    assert_close(expected, result.graph_module(x), 1e-6)


@pytest.mark.parametrize("length", [2, 3])
def test_rectifiers_one_behind_the_other_are_deleted_together(length: int) -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), *[shared] * length, nn.Linear(3, 3)).eval()
    x = torch.randn(2, 3)
    names = [site.name for site in find_sites(capture(model))]
    result = without(model, *names)
    assert not result.refusals
    assert_close(model[-1](model[0](x)), result.graph_module(x), 0)


def test_an_exported_model_loses_its_rectifiers_alike() -> None:
    model, x = two_layers(nn.Hardswish(inplace=True)), torch.randn(1, 2, 5, 5)
    result = run_pipeline(capture(export(model, (x,))), (*PREPARE, Linearise(("1",))))
    assert_close(model[2](model[0](x)), result.graph_module(x), 1e-6)


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def on_the_input(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


def on_a_view(x: Tensor) -> Tensor:
    y = x + 1
    F.relu(y.view(-1), inplace=True)
    return y


def of_an_overwritten_output(x: Tensor) -> Tensor:
    y = x + 1
    z = F.relu(y)
    z.mul_(2)
    return y + z


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (on_the_input, "it works in place, and x shares memory with what it overwrites"),
        (on_a_view, "it works in place, and add shares memory with what it overwrites"),
        (
            of_an_overwritten_output,
            "mul_ overwrites its output in place, and would overwrite its input instead",
        ),
    ],
)
def test_where_others_would_see_it_the_rectifier_stays(
    function: Callable[[Tensor], Tensor], reason: str
) -> None:
    model, x = Calls(function), torch.randn(2, 3)
    result = without(model, "relu")
    assert [(refusal.where, refusal.reason) for refusal in result.refusals] == [("relu", reason)]
    assert [site.name for site in find_sites(result.graph_module)] == ["relu"]
    assert_close(model(x.clone()), result.graph_module(x.clone()), 0)


def y_plus_relu_of_y(x: Tensor) -> Tensor:
    y = x + 1
    z = torch.relu_(y)
    return y + z


def of_a_copy(x: Tensor) -> Tensor:
    return F.relu(x.clone(), inplace=True)


def of_a_private_view(x: Tensor) -> Tensor:
    return F.relu((x + 1).flatten(1), inplace=True)


def overwritten_where_nobody_looks(x: Tensor) -> Tensor:
    return F.relu(x + 1).mul_(2)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (y_plus_relu_of_y, lambda x: 2 * (x + 1)),
        (of_a_copy, lambda x: x),
        (of_a_private_view, lambda x: x + 1),
        (overwritten_where_nobody_looks, lambda x: 2 * (x + 1)),
    ],
)
def test_where_nobody_else_looks_an_in_place_rectifier_is_deleted(
    function: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor]
) -> None:
    x = torch.randn(2, 3)
    result = without(Calls(function), "relu")
    assert not result.refusals
    assert_close(expected(x), result.graph_module(x.clone()), 1e-6)


def test_a_residual_sum_in_place_hides_no_rectifier() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                out = self.conv(x)
                out.add_(x)
                x = self.act(out)
            return x

    model, x = nn.Sequential(nn.Conv2d(2, 2, 1), Block()).eval(), torch.randn(1, 2, 3, 3)
    for captured in (capture(model), capture(export(model, (x,)))):
        sites = [site.name for site in find_sites(captured)]
        result = run_pipeline(captured, (*PREPARE, Linearise(tuple(sites))))
        assert len(sites) == 2
        assert not result.refusals


def test_names_that_are_no_sites_are_left_out() -> None:
    graph_module: GraphModule = capture(two_layers(nn.ReLU()))
    assert not Linearise(("0", "nothing")).run(graph_module).modified
