"""Models of many families: how many operators are left after merging, and equality to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch.fx import GraphModule
from torchvision import models

import fxreduce
from fxreduce.graph.compare import difference
from fxreduce.graph.nodes import operation
from tests.checks import RELATIVE
from tests.models import seeded
from tests.zoo.own_models import Audio, UNet


@dataclass(frozen=True)
class Entry:
    """A model, the shape of its input, and its affine operators before and after merging."""

    make: Callable[..., nn.Module]
    shape: tuple[int, ...]
    operators: tuple[int, int]


ZOO = {
    # Each layer scale goes through a permute into the Linear before it.
    "convnext_tiny": Entry(models.convnext_tiny, (1, 3, 32, 32), (77, 59)),
    "efficientnet_b0": Entry(models.efficientnet_b0, (2, 3, 32, 32), (131, 82)),
    "regnet_y_400mf": Entry(models.regnet_y_400mf, (2, 3, 32, 32), (139, 86)),
    # The first batch-norm of a layer stands between a cat and a rectifier.
    "densenet121": Entry(models.densenet121, (2, 3, 32, 32), (242, 183)),
    "googlenet": Entry(
        lambda: models.googlenet(weights=None, init_weights=False), (1, 3, 64, 64), (115, 58)
    ),
    "r3d_18": Entry(models.video.r3d_18, (1, 3, 4, 32, 32), (41, 21)),
    "unet": Entry(UNet, (2, 3, 16, 16), (15, 8)),
    "audio": Entry(Audio, (2, 1, 256), (8, 4)),
}
QUICK = ("r3d_18", "unet", "audio")


@dataclass(frozen=True)
class Merged:
    entry: Entry
    model: nn.Module
    x: Tensor
    fused: GraphModule

    def apart(self, *inputs: Tensor) -> float:
        """How far the merged model is from the original one, at most."""
        with torch.no_grad():
            return max(difference(self.model(x), self.fused(x)).max_rel for x in inputs)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.zoo) for name in ZOO],
)
def merged(request: pytest.FixtureRequest) -> Merged:
    entry = ZOO[request.param]
    model = seeded(entry.make).double()
    x = torch.randn(entry.shape, dtype=torch.float64)
    return Merged(entry, model, x, fxreduce.fuse(model, example_inputs=x))


def test_the_number_of_operators_is_pinned(merged: Merged) -> None:
    report = fxreduce.report(merged.fused)
    assert (report.operators_before, report.operators_after) == merged.entry.operators


def test_torch_compile_merges_as_much_and_sees_new_weights(merged: Merged) -> None:
    graphs: list[GraphModule] = []

    def inner(graph_module: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph_module)
        return lookup_backend("aot_eager")(graph_module, inputs)

    torch._dynamo.reset()
    model, x = deepcopy(merged.model), merged.x
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    with torch.no_grad():
        for _ in range(2):
            assert difference(model(x), compiled(x)).max_rel < RELATIVE
            for parameter in model.parameters():
                parameter.mul_(1.01)
    assert len(graphs) == 1
    left = sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in merged.fused.modules())
    assert sum(operation(node) == "batch_norm" for node in graphs[0].graph.nodes) == left


def test_the_output_is_equal_to_1e_9(merged: Merged) -> None:
    assert merged.apart(merged.x, torch.randn_like(merged.x), 3 * merged.x) < RELATIVE


# Nothing but its shape tells which axis the audio model's last batch-norm normalises.
@pytest.mark.parametrize(("name", "left"), [("unet", 8), ("audio", 5)])
def test_without_example_inputs_what_needs_no_shapes_is_merged(name: str, left: int) -> None:
    entry = ZOO[name]
    model, x = seeded(entry.make).double(), torch.randn(entry.shape, dtype=torch.float64)
    fused = fxreduce.fuse(model)
    assert fxreduce.report(fused).operators_after == left
    assert Merged(entry, model, x, fused).apart(x) < RELATIVE
