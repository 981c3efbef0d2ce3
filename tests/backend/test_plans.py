"""Plans on the graphs of torch.compile remove what apply does, or warn that they do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from tests.backend.compiling import Inner, calls
from tests.checks import assert_close
from tests.models import Functional, Residual, Small, images, seeded

pytestmark = pytest.mark.usefixtures("no_grad")


def double(make: Callable[[], nn.Module]) -> nn.Module:
    return seeded(make).double()


def planned(model: nn.Module, compensate: str, x: Tensor) -> fxreduce.Plan:
    analysis = fxreduce.analyze(model, [x, x, x], progress=False)
    return analysis.plan(budget=2, compensate=compensate)


@pytest.mark.parametrize("compensate", ["identity", "channel"])
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Small, images(6)[0].double()),
        (Residual, images(6)[0].double()),  # one module, called twice
        (Functional, torch.rand(4, 6, dtype=torch.float64)),
    ],
)
def test_a_compiled_plan_computes_what_the_applied_one_does(
    make: Callable[[], nn.Module], x: Tensor, compensate: str, inner: Inner
) -> None:
    model = double(make)
    plan = planned(model, compensate, x)
    compiled = torch.compile(model, backend=plan.backend(inner))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert_close(plan.apply(model, verify=False)(x), compiled(x))
            for parameter in model.parameters():
                parameter.mul_(1.1)
    assert (compiled(x) - model(x)).abs().max() > 1e-6
    assert inner.compilations == 1
    kept = sum(n for name, n in inner.calls().items() if name.rstrip("_") in ("relu", "gelu"))
    assert kept == len(plan.entropies) - len(plan.sites)


def test_another_architecture_keeps_its_rectifiers_and_one_warning_says_so() -> None:
    x, inner = images(6)[0].double(), Inner()
    plan = planned(double(Small), "channel", x)
    other = double(Residual)
    compiled = torch.compile(other, backend=plan.backend(inner))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            assert_close(other(x), compiled(x))
            other.head.weight.mul_(2)  # folds again
    (warning,) = (str(each.message) for each in seen if "rectifiers" in str(each.message))
    assert "with all its rectifiers: the plan was made for another architecture" in warning
    assert "at position 0 it has 'site act: relu'" in warning
    assert inner.calls()["relu"] == 2
    assert inner.calls()["batch_norm"] == 0  # merging needs no plan


def test_parts_of_a_model_keep_their_rectifiers() -> None:
    class Broken(Small):
        def forward(self, image: Tensor) -> Tensor:
            x = self.act(self.norm(self.stem(image)))
            torch._dynamo.graph_break()
            return self.head(self.pool(self.act2(self.mix(x))).flatten(1))

    x, inner = images(6)[0].double(), Inner()
    model = double(Small)
    plan = planned(model, "identity", x)
    broken = Broken().double().eval()
    broken.load_state_dict(model.state_dict())
    compiled = torch.compile(broken, backend=plan.backend(inner))
    with pytest.warns(UserWarning, match="with all its rectifiers"):
        assert_close(model(x), compiled(x))
    assert sum(calls(graph)["relu"] for graph in inner.graphs) == 2


def test_equal_plans_make_equal_backends(tmp_path: object) -> None:
    x = images(6)[0].double()
    model = double(Small)
    plan = planned(model, "channel", x)
    plan.save(f"{tmp_path}/plan.json")
    loaded = fxreduce.Plan.load(f"{tmp_path}/plan.json")
    backend, again = plan.backend("eager"), loaded.backend("eager")
    assert backend == again
    assert hash(backend) == hash(again)
    assert backend != planned(model, "identity", x).backend("eager")
    assert backend != fxreduce.backend("eager", cost=plan.cost)


def test_a_frozen_plan(inner: Inner) -> None:
    x = images(6)[0].double()
    model = double(Small)
    plan = planned(model, "channel", x)
    compiled = torch.compile(model, backend=plan.backend(inner, freeze=True))
    assert_close(plan.apply(model, verify=False)(x), compiled(x))
    model.head.weight.mul_(2)
    with pytest.raises(fxreduce.WeightsChangedError, match=r"head\.weight"):
        compiled(x)
