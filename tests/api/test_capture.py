"""fxreduce.capture: a graph module that computes what the model does, in eval mode, copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxreduce
from tests.models import Branching, Functional, Residual, Small, images, points, seeded

X = images(5, seed=9)[0]


@pytest.mark.parametrize("make", [Small, Residual])
def test_a_captured_module_computes_what_the_model_does(make: type[nn.Module]) -> None:
    model = seeded(make)
    for form in (model, torch.fx.symbolic_trace(model), torch.export.export(model, (X,))):
        captured = fxreduce.capture(form)
        assert isinstance(captured, GraphModule)
        torch.testing.assert_close(captured(X), model(X), rtol=0, atol=0)


def test_capturing_what_was_captured_gives_the_same_graph() -> None:
    once = fxreduce.capture(seeded(Residual))
    twice = fxreduce.capture(once)
    assert once.code == twice.code
    assert once is not twice


@pytest.mark.parametrize(
    "inputs", [X, (X,), {"image": X}], ids=["a tensor", "positional", "keyword"]
)
def test_example_inputs_come_in_three_forms(inputs: Any) -> None:
    model = seeded(Small)
    report = fxreduce.report(fxreduce.fuse(model, example_inputs=inputs))
    assert report.macs_before is not None
    assert report.max_error is not None


def test_example_inputs_are_not_overwritten() -> None:
    model = seeded(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 2)))
    x = points(4, 6)
    fxreduce.capture(model, x)
    assert torch.equal(x, points(4, 6))


def test_example_inputs_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(fxreduce.CaptureError, match=r"does not run on the example inputs: .*") as e:
        fxreduce.capture(seeded(Small), torch.randn(2, 4, 8, 8))
    assert len(str(e.value).splitlines()) == 1


class Choosing(nn.Module):
    """Control flow over a shape, which torch.export settles and a symbolic trace does not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 3:
            x = self.one(x).relu()
        return self.two(x)


def test_the_way_out_that_the_error_names_works() -> None:
    model, x = seeded(Choosing), points(5, 6)
    with pytest.raises(
        fxreduce.CaptureError, match=r"torch\.export: needs example inputs\)\. Pass"
    ):
        fxreduce.capture(model)
    for form in (model, torch.export.export(model, (x,))):
        reduced = fxreduce.apply(form, [x], budget=1)
        assert fxreduce.report(reduced).removed == ("relu",)
        assert fxreduce.report(reduced).operators_after == 1


def test_the_error_of_a_model_that_does_not_trace_says_what_each_rung_saw() -> None:
    with pytest.raises(
        fxreduce.CaptureError, match=r"symbolic trace: .*; symbolic trace, leaves: "
    ):
        fxreduce.capture(seeded(Branching))


def test_a_failing_forward_does_not_hide_its_reason() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("the weights were not loaded")

    with pytest.raises(fxreduce.CaptureError, match=r"the weights were not loaded"):
        fxreduce.capture(Failing().eval())


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute_are_copied_with_the_gradients_that_they_hold(
    norm: Callable[[nn.Module], nn.Module],
) -> None:
    model = seeded(lambda: nn.Sequential(norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2)))
    x = points(4, 6)
    assert not model(x).is_leaf  # as in training
    for form in (model, torch.fx.symbolic_trace(model)):
        fused = fxreduce.fuse(form, example_inputs=x)
        torch.testing.assert_close(fused(x), model(x))
        assert fxreduce.verify(form, fused, x).ok
        (refusal,) = fxreduce.report(fused).refusals
        assert "forward hooks" in refusal.reason


def test_functional_sites_have_the_same_names_in_every_dialect() -> None:
    model, x = seeded(Functional), points(5, 6)
    names = [
        [site.name for site in fxreduce.analyze(form, [x]).sites]
        for form in (model, torch.fx.symbolic_trace(model), torch.export.export(model, (x,)))
    ]
    assert names == [["relu", "relu#1", "gelu"]] * 3


class Nested(nn.Module):
    """Functional rectifiers in submodules, and a submodule that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Functional(), nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.other(self.inner(self.other(x))))


def test_calls_of_a_shared_submodule_are_told_apart_in_every_dialect() -> None:
    model, x = seeded(Nested), points(50, 6)
    expected = [
        "other.1", "inner.relu", "inner.relu#1", "inner.gelu",
        "other.1#1", "inner.relu#2", "inner.relu#3", "inner.gelu#1",
    ]  # fmt: skip
    analyses = [
        fxreduce.analyze(form, [x])
        for form in (model, torch.fx.symbolic_trace(model), torch.export.export(model, (x,)))
    ]
    for analysis in analyses:
        assert [site.name for site in analysis.sites] == expected
        assert [site.entropy for site in analysis.sites] == pytest.approx(
            [site.entropy for site in analyses[0].sites], abs=1e-6
        )


def test_a_graph_module_that_a_user_edited_is_taken_as_it_is() -> None:
    model = seeded(Small)
    edited = torch.fx.symbolic_trace(model)
    for node in edited.graph.find_nodes(op="call_module", target="act"):
        node.replace_all_uses_with(node.args[0])
        edited.graph.erase_node(node)
    edited.recompile()
    expected = copy.deepcopy(model)
    expected.act = nn.Identity()
    torch.testing.assert_close(fxreduce.fuse(edited)(X), expected(X))
    assert [site.name for site in fxreduce.analyze(edited, [X]).sites] == ["act2"]
