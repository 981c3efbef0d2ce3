"""Models that amplify rounding: merges are not taken for wrong, and wrong ones are still found."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxreduce
from fxreduce.passes import pipeline
from fxreduce.passes.base import PassResult
from tests.api.wrong_passes import Doubles
from tests.models import seeded

X = torch.linspace(-1, 1, 40).view(5, 8)
USUAL = 3.1e-5  # relative, what rounding to float32 explains of most models


class Amplifying(nn.Module):
    """The sine of a large number: a unit in its last place is far more than one in the sine's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sin(1e5 * self.second(self.first(x))))


@dataclass(frozen=True)
class Nudges(Doubles):
    """Moves the classifier's weight by less than rounding does."""

    name: ClassVar[str] = "nudges"

    def run(self, graph_module: GraphModule) -> PassResult:
        graph_module = copy.deepcopy(graph_module)
        graph_module.head.weight.data.mul_(1 + 2**-23)
        return PassResult(graph_module, self.edits)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(Amplifying)


@pytest.fixture(autouse=True)
def registered_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_REGISTERED", list(pipeline._REGISTERED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_merged_and_the_report_says_how_far_rounding_moves_it(
    model: nn.Module, dtype: torch.dtype
) -> None:
    given = copy.deepcopy(model).to(dtype)
    fused = fxreduce.fuse(given, example_inputs=X.to(dtype))
    report = fxreduce.report(fused)
    assert (report.operators_before, report.operators_after) == (4, 2)
    rounds = dtype == torch.float32
    assert (report.max_error > USUAL) is rounds
    said = [line for line in report.decisions if "when each weight is rounded anew" in line]
    assert len(said) == rounds
    found = fxreduce.verify(given, fused, X.to(dtype))
    assert found.ok
    assert (found.tolerance > USUAL) is rounds


def test_what_is_wrong_by_more_is_found(model: nn.Module) -> None:
    fxreduce.registry.register_pass(Doubles())
    with pytest.raises(fxreduce.EquivalenceError, match=r"'doubles' .*the output moved by"):
        fxreduce.fuse(model, example_inputs=X)
    wrong = copy.deepcopy(model)
    wrong.head.weight.data.mul_(1.1)
    assert not fxreduce.verify(model, wrong, X).ok


def test_what_is_wrong_by_less_is_found_in_float64(model: nn.Module) -> None:
    nudged = Nudges().run(fxreduce.capture(model, X)).graph_module
    assert fxreduce.verify(model, nudged, X).ok  # in float32 nobody can tell
    fxreduce.registry.register_pass(Nudges(edits=()))
    with pytest.raises(fxreduce.EquivalenceError, match=r"'nudges' .*the output moved by"):
        fxreduce.fuse(model, example_inputs=X)


def test_a_model_that_does_not_amplify_it_is_held_to_the_usual_bound() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    wrong = copy.deepcopy(model)
    wrong[2].weight.data.mul_(1.0001)
    found = fxreduce.verify(model, wrong, X)
    assert not found.ok
    assert found.tolerance < USUAL
