"""Rectifiers that are spelled out are read as such, others are left alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import fxreduce
from fxreduce.graph.composites import quick_gelu
from fxreduce.graph.rectifiers import find_sites
from tests.models import points

X = points(50, 6)
Function = Callable[[Tensor], Tensor]


def gelu_new(x: Tensor) -> Tensor:
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
    return 0.5 * x * (1.0 + torch.tanh(inner))


class Act(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def model_of(function: Function) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), Act(function), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (gelu_new, "gelu"),
        (lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x.mul(x.sigmoid()), "silu"),
        (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
        (lambda x: x * (F.relu6(x + 3.0) / 6.0), "hardswish"),
        (lambda x: x * F.hardtanh(x + 3, 0, 6) * (1 / 6), "hardswish"),
        (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
        (quick_gelu, "quick_gelu"),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_a_rectifier_that_is_spelled_out_is_a_site(
    function: Function, kind: str, exported: bool
) -> None:
    model = model_of(function)
    form = torch.export.export(model, (X,)) if exported else model
    captured = fxreduce.capture(form)
    assert [(s.name, s.rectifier.kind) for s in find_sites(captured)] == [(f"1.{kind}", kind)]
    torch.testing.assert_close(captured(X), model(X))
    reduced = fxreduce.apply(form, [X], budget=1, compensate="identity")
    assert fxreduce.report(reduced).operators_after == 1
    torch.testing.assert_close(reduced(X), model[2](model[0](X)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(1.5 * x),
        lambda x: 0.5 * x * (1 + torch.tanh(x)),
        lambda x: x * torch.sigmoid(x.flip(-1)),  # a gate
        lambda x: x * (F.relu6(x.flip(-1) + 3) / 6),  # a gate by hard sigmoid
        lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),  # squeeze and excite
    ],
)
def test_gates_and_other_products_are_no_sites(function: Function) -> None:
    model = model_of(function)
    captured = fxreduce.capture(model)
    assert find_sites(captured) == ()
    torch.testing.assert_close(captured(X), model(X))


def test_what_others_read_stays() -> None:
    def both(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return x * gate + gate

    model = model_of(both)
    captured = fxreduce.capture(model)
    assert find_sites(captured) == ()
    assert torch.equal(captured(X), model(X))
