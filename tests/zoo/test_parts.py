"""Parts that the zoo's models are made of, in every dialect: merged as far as they can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import BlurPool2d, Conv2dSame, ScaledStdConv2d, SqueezeExcite, StdConv2dSame
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn.utils import parametrizations
from torchvision.models import shufflenetv2

import fxreduce
from fxreduce.graph.capture import capture_record
from tests.checks import assert_close
from tests.models import seeded

X = torch.randn(2, 4, 9, 9, dtype=torch.float64)


class Tied(nn.Module):
    """One weight in two layers, of which the first has a batch-norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.norm(self.first(x))))


class Gated(nn.Module):
    """A squeeze-excite gate between two convolutions, each with its batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.gate = SqueezeExcite(8, rd_channels=2)
        self.project, self.bn2 = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.project(self.gate(self.bn(self.conv(x)))))


@dataclass(frozen=True)
class Part:
    """How a part is made, and its affine operators before and after merging."""

    make: Callable[[], nn.Module]
    operators: tuple[int, int]


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


PARTS = {
    # The size of the image decides how much Conv2dSame pads.
    "same_padding": Part(
        chain(Conv2dSame(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU()), (2, 1)
    ),
    "blur_pooling": Part(
        chain(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), BlurPool2d(6), nn.Conv2d(6, 4, 1)),
        (4, 2),
    ),
    "shuffled_chunks": Part(
        lambda: nn.Sequential(
            shufflenetv2.InvertedResidual(4, 8, 2), shufflenetv2.InvertedResidual(8, 8, 1)
        ),
        (16, 5),
    ),
    "squeeze_excite": Part(Gated, (6, 4)),
    "tied_weights": Part(Tied, (3, 2)),
    "standardised_weights": Part(chain(ScaledStdConv2d(4, 6, 3), nn.Conv2d(6, 4, 1)), (2, 1)),
    "standardised_same": Part(chain(StdConv2dSame(4, 6, 3, stride=2), nn.BatchNorm2d(6)), (2, 1)),
    "normalised_weights": Part(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)),
        (2, 1),
    ),
}


def as_module(model: nn.Module) -> Any:
    return model


def as_export(model: nn.Module) -> Any:
    return export(model, (X,), dynamic_shapes=({0: Dim.AUTO},))


@pytest.mark.parametrize("dialect", [as_module, as_export])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_merged_alike_in_each_dialect(name: str, dialect: Callable[..., Any]) -> None:
    part = PARTS[name]
    model = seeded(part.make).double()
    fused = fxreduce.fuse(dialect(model), example_inputs=X)
    report = fxreduce.report(fused)
    assert (report.operators_before, report.operators_after) == part.operators
    for x in (X, torch.randn(3, 4, 9, 9, dtype=torch.float64)):
        assert_close(model(x), fused(x))


def test_padding_that_follows_from_the_size_stays_right_for_other_sizes() -> None:
    model = seeded(PARTS["same_padding"].make).double()
    fused = fxreduce.fuse(model, example_inputs=X)
    assert capture_record(fused).rung in ("symbolic trace, leaves", "torch.export")
    for size in (8, 9, 11, 16):
        x = torch.randn(1, 4, size, size, dtype=torch.float64)
        assert_close(model(x), fused(x))


def test_tied_weights_stay_one_in_an_export_until_one_of_them_is_merged() -> None:
    model = seeded(Tied).double()
    fused = fxreduce.fuse(as_export(model), example_inputs=X)
    weights = [p for p in fused.parameters() if p.dim() == 4]
    assert len(weights) == 2  # that of the batch-norm's neighbour has become another
    assert any(torch.equal(each, model.first.weight) for each in weights)
    assert torch.equal(model.first.weight, model.second.weight)
