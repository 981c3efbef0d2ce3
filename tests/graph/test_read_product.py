"""Products with constant matrices are read as Linear or pointwise convolutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from tests.checks import assert_close
from tests.models import seeded

ROWS, IMAGE = (4, 6), (2, 6, 5, 3)
TOKENS = (2, 4, 6)


class Product(nn.Module):
    """A product with a constant, and a Linear or pointwise convolution behind it."""

    def __init__(self, product: Callable[[nn.Module, Tensor], Tensor], after: nn.Module) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 5))
        self.turned = nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(5))
        self.product, self.after = product, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.product(self, x))


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        (lambda m, x: torch.addmm(m.bias, x, m.matrix), ROWS),
        (lambda m, x: torch.mm(x, m.matrix), ROWS),
        (lambda m, x: x @ m.matrix, TOKENS),
        (lambda m, x: torch.matmul(x, m.matrix), TOKENS),
        (lambda m, x: torch.einsum("bnc,cd->bnd", x, m.matrix), TOKENS),
        (lambda m, x: torch.einsum("...c,dc->...d", x, m.turned), TOKENS),
        (lambda m, x: torch.einsum("dc,bnc->bnd", m.turned, x), TOKENS),
        (lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.turned), IMAGE),
        (lambda m, x: torch.einsum("bchw, cd -> bdhw", x, m.matrix), IMAGE),
    ],
)
def test_a_product_merges_with_what_follows(
    product: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    after = nn.Linear(5, 2) if shape != IMAGE else nn.Conv2d(5, 2, 1)
    model = seeded(lambda: Product(product, after)).double()
    x = torch.randn(shape, dtype=torch.float64)
    fused = fxreduce.fuse(model, example_inputs=x)
    report = fxreduce.report(fused)
    assert (report.operators_before, report.operators_after) == (2, 1)
    assert_close(model(x), fused(x))


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        (lambda m, x: torch.addmm(m.bias, x, m.matrix, alpha=2), ROWS),  # a weighted sum
        (lambda m, x: m.turned @ x.mT, TOKENS),  # the constant on the left maps other axes
        (lambda m, x: torch.einsum("bnc,cd->bdn", x, m.matrix).mT, TOKENS),  # axes change places
        (lambda m, x: torch.einsum("bnc,cd->bn", x, m.matrix)[..., None].expand(2, 4, 5), TOKENS),
        (lambda m, x: x[..., :5] @ (x[0].mT @ x[0])[:5, :5], TOKENS),  # no constant at all
    ],
)
def test_other_products_stay(
    product: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    width = product(Product(product, nn.Identity()), torch.randn(shape)).shape[-1]
    model = seeded(lambda: Product(product, nn.Linear(width, 2))).double()
    x = torch.randn(shape, dtype=torch.float64)
    fused = fxreduce.fuse(model, example_inputs=x)
    assert fxreduce.report(fused).operators_after == fxreduce.report(fused).operators_before
    assert_close(model(x), fused(x))


class Rows(nn.Module):
    """GPT-2's Linear layers, which map rows of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 24)), nn.Parameter(torch.randn(24, 6))
        self.bias, self.shift = nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.view(-1, 6), self.first)
        wide = nn.functional.gelu(rows.view(x.shape[0], x.shape[1], 24))
        return torch.addmm(self.shift, wide.view(-1, 24), self.second).view(x.shape)


@pytest.mark.parametrize("exported", [False, True])
def test_operators_on_rows_merge_across_the_tokens_in_between(exported: bool) -> None:
    model, x = seeded(Rows).double(), torch.randn(TOKENS, dtype=torch.float64)
    form = torch.export.export(model, (x,)) if exported else model
    linear = fxreduce.linearize(form, ["gelu"])
    fused = fxreduce.fuse(linear, example_inputs=x)
    assert fxreduce.report(fused).operators_after == 1
    assert_close(linear(x), fused(x))
