"""Assertions over shapes are dropped, and with them what was computed for them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import assert_close
from torch import Tensor, nn

from fxreduce.graph.capture import capture
from fxreduce.passes.drop_checks import DropChecks

Forward = Callable[[Any, Tensor], Any]


class Checked(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def twice_sized(m: Any, x: Tensor) -> Any:
    y = m.fc(x)
    rows = y.shape[0]
    torch._assert(rows == x.size(0), "rows")
    return y.reshape(rows, -1)


def checked(m: Any, x: Tensor) -> Any:
    y = m.fc(x)
    torch._assert(y.dim() == 2, "two axes")
    torch._assert(y.shape[0] <= y.shape[1], "not too many")
    torch._assert(y.ndim != 3, "no image")
    return y


def on_values(m: Any, x: Tensor) -> Any:
    y = m.fc(x)
    torch._assert((y < 1e9).all(), "finite")
    torch._assert(y.shape[0] + y.shape[1] > 1, "arithmetic")
    return y


@pytest.mark.parametrize(
    ("forward", "left", "erased"), [(checked, 0, 12), (twice_sized, 0, 3), (on_values, 2, 0)]
)
def test_checks_of_shapes_alone_go_with_what_only_they_read(
    forward: Forward, left: int, erased: int
) -> None:
    model, x = Checked(forward).eval(), torch.randn(2, 3)
    result = DropChecks().run(capture(model))
    graph = result.graph_module.graph
    assert len([node for node in graph.nodes if node.target is torch._assert]) == left
    assert [edit.action for edit in result.edits] == ["erased"] * erased
    assert_close(model(x), result.graph_module(x), 0)


def test_a_model_without_checks_stays() -> None:
    assert not DropChecks().run(capture(nn.Sequential(nn.Linear(3, 3)).eval())).modified
