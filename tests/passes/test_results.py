"""Merged graph modules can be copied, saved, exported and traced, and know their shapes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import assert_close, randomised
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule, symbolic_trace

import fxreduce
from fxreduce.graph.modules import BorderedConv, ChannelAffine


class Model(nn.Module):
    """What merging leaves of it holds a BorderedConv and a ChannelAffine."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.last = nn.ReLU(inplace=True), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(self.norm(x)))
        return self.last(self.last(y)) + y


def through_a_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def image() -> Tensor:
    return torch.randn(2, 4, 6, 5, dtype=torch.float64)


def merged(form: Callable[[nn.Module], Any]) -> tuple[nn.Module, GraphModule]:
    model = randomised(Model())
    return model, fxreduce.fuse(form(model), example_inputs=image())


FORMS: list[Callable[[nn.Module], Any]] = [
    lambda model: model,
    symbolic_trace,
    lambda model: export(model, (image(),)),
]


@pytest.mark.parametrize("form", FORMS, ids=["module", "trace", "export"])
def test_a_result_holds_the_modules_that_torch_has_not(form: Callable[[nn.Module], Any]) -> None:
    _, result = merged(form)
    kinds = {type(module) for module in result.modules()}
    assert {BorderedConv, ChannelAffine} <= kinds


CONVERSIONS: list[Callable[[GraphModule], Any]] = [
    copy.deepcopy,
    through_a_file,
    lambda result: through_a_file(copy.deepcopy(result)),
    symbolic_trace,
    lambda result: export(result, (image(),)).module(),
    lambda result: fxreduce.fuse(result),
    lambda result: fxreduce.fuse(symbolic_trace(result)),
    lambda result: fxreduce.capture(nn.Sequential(result).eval()),
]


@pytest.mark.parametrize("convert", CONVERSIONS)
@pytest.mark.parametrize("form", FORMS[:2], ids=["module", "trace"])
def test_a_result_still_runs_when_converted(
    form: Callable[[nn.Module], Any], convert: Callable[[GraphModule], Any]
) -> None:
    model, result = merged(form)
    x = image()
    assert_close(model(x), convert(result)(x))


def test_the_result_of_an_exported_model_can_be_copied_and_merged_again() -> None:
    model, result = merged(FORMS[2])
    x = image()
    # Not saved whole: torch cannot pickle what an ExportedProgram's own module() returns.
    assert_close(model(x), copy.deepcopy(result)(x))
    assert_close(model(x), fxreduce.fuse(result)(x))


def test_an_untouched_module_keeps_its_name_and_a_merged_one_takes_the_first_ones() -> None:
    _, result = merged(lambda model: model)
    assert set(dict(result.named_children())) == {"norm", "act", "last"}


def test_a_checkpoint_of_untouched_modules_still_fits() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2))
    result = fxreduce.fuse(model.eval())
    assert result.state_dict().keys() == model.state_dict().keys()
    result.load_state_dict(model.state_dict())


def test_frozen_and_trainable_parameters_are_all_there_to_be_trained() -> None:
    _, result = merged(lambda model: model)
    result(image()).sum().backward()
    assert all(parameter.grad is not None for parameter in result.parameters())
