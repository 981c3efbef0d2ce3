"""Concatenations are read in every dialect, with the axis counted from the right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.capture import capture
from fxreduce.graph.concatenation import Concatenation, read_concatenation
from fxreduce.operators.affine import Refusal
from tests.versions import since


class Cat(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


def read(model: Any, *inputs: Tensor) -> list[Concatenation]:
    graph_module = capture(model, *inputs)
    found = (read_concatenation(graph_module, node) for node in graph_module.graph.nodes)
    return [each for each in found if each is not None]


@pytest.mark.parametrize(
    ("function", "axis"),
    [
        (lambda y: torch.cat([y, y], 1), -3),
        (lambda y: torch.cat((y, y), dim=-3), -3),
        (lambda y: torch.cat(tensors=[y, y], dim=2), -2),
        (lambda y: torch.concat([y, y]), -4),
        (lambda y: torch.concatenate([y, y], axis=-1), -1),
    ],
)
def test_every_form_is_read_with_and_without_shapes(
    function: Callable[[Tensor], Any], axis: int
) -> None:
    model, x = Cat(function).eval(), torch.randn(2, 4, 3, 5)
    for found in (read(model, x), read(model), read(export(model, (x,)))):
        (concatenation,) = found
        assert concatenation.axis == axis
        assert len(concatenation.operands) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.cat([y, y], 1, out=torch.empty(2, 6, 3, 5)),
        lambda y: torch.stack([y, y], 1),
        pytest.param(
            lambda y: torch.cat(y.split(1, 1), 1),  # not known to be a list
            marks=since((2, 9), "cat takes no traced list"),
        ),
    ],
)
def test_what_overwrites_or_is_something_else_is_not_read(
    function: Callable[[Tensor], Any],
) -> None:
    assert read(Cat(function).eval()) == []


def test_an_axis_that_nothing_tells_is_not_read() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 1)

    assert read(Bare().eval()) == []
    assert read(Bare().eval(), torch.randn(2, 3))[0].axis == -1


def test_operands_lie_behind_one_another() -> None:
    model = Cat(lambda y: torch.cat([y, torch.cat([y, y], 1), y], 1)).eval()
    graph_module = capture(model, torch.randn(2, 4, 3, 5))
    whole = [read_concatenation(graph_module, node) for node in graph_module.graph.nodes][-2]
    assert whole is not None
    assert whole.spans(graph_module, 12) == ((0, 3), (3, 6), (9, 3))
    assert isinstance(whole.spans(graph_module, 13), Refusal)
    assert whole.shape_with(7) == (2, 7, 3, 5)
