"""Arithmetic with constants is a scale-shift where the constant varies by channel alone."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import read_operators, refusals
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.capture import capture
from fxreduce.operators.affine import ScaleShift

Form = Callable[[Any, Tensor], Tensor]


class Constants(nn.Module):
    """A convolution, so that the axes are known, and arithmetic behind it."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(3, 3, 1)
        self.gain = nn.Parameter(torch.tensor([2.0, -3.0, 0.5]).view(3, 1, 1))
        self.gamma = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("offset", torch.randn(1, 3, 1, 1))
        self.register_buffer("column", torch.randn(4))
        self.register_buffer("plane", torch.randn(5, 4))
        self.register_buffer("counts", torch.tensor([1, 2, 3]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, self.conv(x))


def scale_shifts(graph_module: Any, x: Tensor) -> list[ScaleShift]:
    read = read_operators(graph_module, x)
    return [operator for operator in read if isinstance(operator, ScaleShift)]


IMAGE = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
FORMS: dict[str, Form] = {
    "x * c": lambda m, x: x * m.gain,
    "c * x": lambda m, x: m.gain * x,
    "x + c": lambda m, x: x + m.offset,
    "c + x": lambda m, x: m.offset + x,
    "x - c": lambda m, x: x - m.offset,
    "c - x": lambda m, x: m.offset - x,
    "x / c": lambda m, x: x / m.gain,
    "torch.mul": lambda m, x: torch.mul(input=x, other=m.gain),
    "torch.div": lambda m, x: torch.div(x, m.gain),
    "torch.add": lambda m, x: torch.add(x, m.offset, alpha=1),
    "x.mul_(c)": lambda m, x: x.mul_(m.gain),
    "x.sub_(c)": lambda m, x: x.sub_(m.offset),
    "x + 2": lambda m, x: x + 2,
    "3 * x": lambda m, x: 3 * x,
    "x / 4": lambda m, x: x / 4,
    "x - 0.5": lambda m, x: x - 0.5,
    "x * gamma": lambda m, x: x * m.gamma,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_constant_per_channel_is_read_in_each_dialect(name: str) -> None:
    model = Constants(FORMS[name]).eval()
    for graph_module in (capture(model, IMAGE), capture(export(model, (IMAGE,)))):
        (read,) = scale_shifts(graph_module, IMAGE)
        assert (read.rank, read.in_channels) == (2, 3)


def test_a_constant_minus_a_value_is_read_from_a_trace() -> None:
    model = Constants(lambda m, x: 1 - x).eval()
    assert len(scale_shifts(capture(model, IMAGE), IMAGE)) == 1


@pytest.mark.parametrize(
    "form",
    [
        lambda m, x: m.gain / x,
        lambda m, x: x + x,
        lambda m, x: x * x,
        lambda m, x: torch.add(x, m.offset, alpha=2),
        lambda m, x: torch.div(x, m.gain, rounding_mode="floor"),
        lambda m, x: x // 2,
        lambda m, x: x * m.counts,
        lambda m, x: x * True,
        lambda m, x: m.gain * m.offset + x.mean(),
    ],
)
def test_what_is_no_affine_map_of_each_channel_is_not_read(form: Form) -> None:
    model = Constants(form).eval()
    for graph_module in (capture(model, IMAGE), capture(export(model, (IMAGE,)))):
        assert scale_shifts(graph_module, IMAGE) == []


def test_a_constant_along_another_axis_is_read_with_that_axis_as_its_channels() -> None:
    (read,) = scale_shifts(capture(Constants(lambda m, x: x * m.column).eval(), IMAGE), IMAGE)
    assert (read.rank, read.in_channels) == (0, 4)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (lambda m, x: x + m.plane, "(5, 4)"),
        (lambda m, x: x.mean((2, 3), keepdim=True) * m.plane, "(5, 4)"),
        (lambda m, x: x[:, :1] * m.offset, "(1, 3, 1, 1)"),
        (lambda m, x: x[0] * m.offset, "(1, 3, 1, 1)"),
    ],
)
def test_a_constant_that_varies_within_a_channel_or_widens_is_refused(
    form: Form, shape: str
) -> None:
    model = Constants(form).eval()
    assert any(
        reason == f"a constant of shape {shape} varies within a channel"
        for reason in refusals(capture(export(model, (IMAGE,)))).values()
    )


def test_a_number_that_is_added_to_a_number_has_no_channels() -> None:
    graph_module = capture(Constants(lambda m, x: x.mean() + 2).eval(), IMAGE)
    assert "a single number has no channels" in refusals(graph_module).values()


def test_without_shapes_a_constant_is_refused() -> None:
    graph_module = capture(Constants(lambda m, x: x * m.gain).eval())
    (reason,) = refusals(graph_module).values()
    assert reason.startswith("nothing tells along which axis the constant lies; capture the model")


def like_of_last(form: Form) -> Tensor | None:
    graph_module = capture(Constants(form).eval(), IMAGE)
    call = read_affine(graph_module, list(graph_module.graph.nodes)[-2])
    assert isinstance(call, AffineCall)
    return call.like


def test_a_single_number_tells_neither_dtype_nor_channels() -> None:
    assert like_of_last(lambda m, x: operator.mul(x, 2)) is None
    assert like_of_last(lambda m, x: operator.mul(x, m.gamma)) is None
    gain = like_of_last(lambda m, x: operator.mul(x, m.gain))
    assert gain is not None
    assert gain.shape == (3, 1, 1)
