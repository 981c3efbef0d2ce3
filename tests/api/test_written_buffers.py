"""Buffers that a model writes: not folded, and as they were whatever is done to the model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from tests.checks import assert_close
from tests.models import points, seeded

Write = Callable[[Any, Tensor], None]


class Writing(nn.Module):
    """Writes a buffer at every call, and scales by it between two Linears."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write
        self.fc, self.mid, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("scale", torch.ones(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.write(self, x)
        x = self.mid(self.fc(x).relu())
        return self.head(x * (2 * self.scale)) * (self.calls + 1)


def add(m: Any, _: Tensor) -> None:
    m.scale.add_(1)


def assign(m: Any, _: Tensor) -> None:
    m.scale = m.scale + 1


def copy(m: Any, x: Tensor) -> None:
    m.scale.copy_(x.mean(0))


def item(m: Any, x: Tensor) -> None:
    m.scale[0] = x.sum()


def view(m: Any, _: Tensor) -> None:
    m.scale.view(2, 3)[0].mul_(2)


def count(m: Any, _: Tensor) -> None:
    m.calls += 1


def as_module(model: nn.Module, _: Tensor) -> Any:
    return model


def as_export(model: nn.Module, x: Tensor) -> Any:
    sizes = ({0: torch.export.Dim.AUTO},)
    return torch.export.export(model, (x,), dynamic_shapes=sizes, strict=False)


def writing(write: Write) -> nn.Module:
    return seeded(lambda: Writing(write)).double()


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("dialect", [as_module, as_export])
@pytest.mark.parametrize("write", [add, assign, copy, item, view, count])
def test_what_a_model_writes_is_computed_at_each_call(
    write: Write, dialect: Callable[..., Any]
) -> None:
    model, x = writing(write), points(4, 6).double()
    fused = fxreduce.fuse(dialect(deepcopy(model), x), example_inputs=x)
    for factor in (1, 2, 3):
        assert_close(model(factor * x), fused(factor * x))


@pytest.mark.parametrize("write", [add, copy, view])
def test_what_follows_from_a_written_buffer_is_no_constant_without_example_inputs(
    write: Write,
) -> None:
    model, x = writing(write), points(4, 6).double()
    fused = fxreduce.fuse(model)
    for factor in (1, 2, 3):
        assert_close(model(factor * x), fused(factor * x))


def test_a_written_item_needs_example_inputs() -> None:
    with pytest.raises(fxreduce.CaptureError, match=r"item assignment; .* needs example inputs"):
        fxreduce.fuse(writing(item))


@pytest.mark.parametrize("compensate", ["identity", "channel", "refit"])
@pytest.mark.parametrize("write", [add, copy, count])
def test_calibrating_and_checking_leave_the_state_as_it_was(write: Write, compensate: str) -> None:
    model, batches = writing(write), [points(8, 6, seed=seed).double() for seed in range(3)]
    before = states(model)
    reduced = fxreduce.apply(model, batches, budget=1, compensate=compensate)
    analysis = fxreduce.analyze(model, batches)
    planned = analysis.plan(budget=1, compensate=compensate).apply(model)
    for each in (model, reduced, planned):
        now = states(each)  # what the graph reads of them
        for name in before.keys() & now.keys():
            assert torch.equal(now[name], before[name]), name
    assert_close(reduced(batches[0]), planned(batches[0]))


def test_comparing_leaves_the_state_of_both_as_it_was() -> None:
    model, x = writing(add), points(4, 6).double()
    fused = fxreduce.fuse(model, example_inputs=x)
    assert fxreduce.verify(model, fused, [x, 2 * x]).ok
    for each in (model, fused):
        assert torch.equal(each.scale, torch.ones(6).double())
