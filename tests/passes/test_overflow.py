"""What float16 cannot hold is not merged, and the report says which value it is."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from networks import Wiring
from rewrites import Calls
from torch import Tensor, nn

import fxreduce
from fxreduce.graph.compare import paired

LARGE = 300.0  # whose square float16 cannot hold


def large(layer: nn.Module) -> nn.Module:
    """The layer with weights of which each one is larger than the one before."""
    for weight in layer.parameters():
        weight.detach().copy_(torch.linspace(1, 2, weight.numel()).view_as(weight) * LARGE)
    return layer


def conv(into: int = 1, out: int = 1, size: int = 1, **options: Any) -> nn.Module:
    return large(nn.Conv2d(into, out, size, bias=False, **options))


def linear(into: int = 1) -> nn.Module:
    return large(nn.Linear(into, 1, bias=False))


def norm() -> nn.Module:
    """A batch-norm that multiplies by a large number and shifts nothing."""
    layer = nn.BatchNorm2d(2, eps=0.0)
    nn.init.constant_(layer.weight, LARGE)
    return layer


def shared(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.f(x)
    return m.g(y), m.h(y)


# What would merge into a product of both layers' weights, by the pass that would do it.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "fuse_chain": lambda: nn.Sequential(conv(), conv()),
    "fuse_shared": lambda: Wiring(shared, f=conv(), g=conv(), h=conv()),
    "fuse_padded": lambda: nn.Sequential(conv(size=3, padding=1), conv(size=3, padding=1)),
    "fuse_flatten": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), conv(), nn.Flatten(), linear()
    ),
    "fold_scale": lambda: Wiring(
        lambda m, x: m.g(m.f(x).flatten(2).transpose(1, 2)),
        f=nn.Sequential(norm()), g=linear(2),
    ),
    "fold_norm": lambda: nn.Sequential(large(nn.LayerNorm(5, bias=False)), linear(5)),
    "scale_cat": lambda: Wiring(
        lambda m, x: torch.tanh(m.s(torch.cat([m.f(x), m.g(x.tanh())], 1))),
        f=conv(), g=conv(), s=norm(),
    ),
    "split_cat": lambda: Wiring(
        lambda m, x: m.h(torch.cat([m.f(x), m.g(x.tanh())], 1)), f=conv(), g=conv(), h=conv(2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_each_pass_refuses_with_the_value_and_what_the_dtype_holds(name: str) -> None:
    model = MODELS[name]().eval().half()
    channels = 2 if name == "fold_scale" else 1
    x = (torch.rand(1, channels, 6, 5) / 1e4).half()
    each = -1.0 if name == "fuse_padded" else 1.0  # a border takes more calls
    fused = fxreduce.fuse(model, Calls(each), example_inputs=x)
    refused = [r for r in fxreduce.report(fused).refusals if r.rewrite == name]
    assert any(r.reason.endswith("holds 65504 at most") for r in refused), refused
    with torch.no_grad():
        for a, b in paired(model(x), fused(x)):
            assert bool(b.isfinite().all())
            assert torch.allclose(a, b, rtol=1e-2)


def test_the_same_model_merges_in_a_dtype_that_holds_the_product() -> None:
    model = MODELS["fuse_chain"]().eval()
    for dtype in (torch.bfloat16, torch.float32):
        fused = fxreduce.fuse(model.to(dtype), example_inputs=torch.rand(1, 1, 6, 5).to(dtype))
        assert fxreduce.report(fused).operators_after == 1


def test_a_sum_that_is_too_large_is_left_apart() -> None:
    near = conv()
    nn.init.constant_(near.weight, 4e4)  # type: ignore[arg-type]
    both = Wiring(lambda m, x: m.f(x) + m.g(x), f=near, g=deepcopy(near))
    x = torch.full((1, 1, 4, 4), 1e-3).half()
    fused = fxreduce.fuse(both.eval().half(), example_inputs=x)
    reasons = [refusal.reason for refusal in fxreduce.report(fused).refusals]
    assert "the merged weight holds 8e+04, and torch.float16 holds 65504 at most" in reasons


def test_the_rest_of_a_chain_merges_where_a_part_of_it_would_overflow() -> None:
    small = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(small.weight, 1e-3)
    model = nn.Sequential(conv(), conv(), small).eval().half()
    x = torch.full((1, 1, 4, 4), 1e-3).half()
    # All three are held, although two of them are not.
    assert fxreduce.report(fxreduce.fuse(model, example_inputs=x)).operators_after == 1
    model = nn.Sequential(conv(), conv(), conv(), small, small).eval().half()
    fused = fxreduce.fuse(model, example_inputs=x)
    report = fxreduce.report(fused)
    assert report.operators_after == 1
    with torch.no_grad():
        assert torch.allclose(fused(x), model.float()(x.float()).half(), rtol=1e-2)
