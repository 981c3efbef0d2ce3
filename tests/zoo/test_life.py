"""What is done with a model afterwards can be done with a merged one: compile, export, train."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision import models

import fxreduce
from tests.checks import assert_close
from tests.models import seeded
from tests.zoo.own_models import Audio, UNet

MODELS = {
    "unet": (UNet, (2, 3, 16, 16)),
    "audio": (Audio, (2, 1, 256)),
    "mobilenet_v2": (models.mobilenet_v2, (2, 3, 32, 32)),
}


@pytest.fixture(
    params=["unet", "audio", pytest.param("mobilenet_v2", marks=pytest.mark.zoo)],
)
def merged(request: pytest.FixtureRequest) -> tuple[GraphModule, Tensor]:
    """A merged model without its rectifiers, and an input."""
    make, shape = MODELS[request.param]
    model, x = seeded(make).double(), torch.randn(shape, dtype=torch.float64)
    sites = [site.name for site in fxreduce.report(fxreduce.fuse(model)).sites]
    return fxreduce.fuse(fxreduce.linearize(model, sites[::2]), example_inputs=x), x


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_merged_model_compiles(merged: tuple[GraphModule, Tensor], backend: str) -> None:
    module, x = merged
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert_close(module(x), compiled(x))


def test_a_merged_model_is_exported_for_any_batch_size(merged: tuple[GraphModule, Tensor]) -> None:
    module, x = merged
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    larger = torch.cat([x, 2 * x])
    assert_close(module(larger), exported.module()(larger))


def test_a_merged_model_is_trained(merged: tuple[GraphModule, Tensor]) -> None:
    module, x = merged
    before = copy.deepcopy(module)
    batch_norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not batch_norms
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    module.train()(x).square().mean().backward()
    missed = [name for name, each in module.named_parameters() if each.grad is None]
    assert missed == []
    optimizer.step()
    module.eval()
    for (name, new), old in zip(module.named_parameters(), before.parameters(), strict=True):
        assert new.requires_grad
        assert not torch.equal(new, old), name
    with torch.no_grad():
        assert not torch.equal(module(x), before(x))
