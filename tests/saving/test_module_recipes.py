"""Modules are built anew from their geometry: torch's own, and those that merging leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.modules import BorderedConv, ChannelAffine
from fxreduce.saving.modules import build, recipe_of
from tests.models import seeded

TORCH_S_OWN: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(4, 6, (3, 1), stride=2, padding=(1, 0), dilation=2, groups=2, bias=False),
    lambda: nn.Conv1d(3, 4, 3, padding="same", padding_mode="reflect"),
    lambda: nn.ConvTranspose2d(3, 4, 2, stride=2, output_padding=1, groups=1),
    lambda: nn.Linear(3, 4, bias=False),
    lambda: nn.BatchNorm2d(4, eps=1e-3, affine=False),
    lambda: nn.LayerNorm((3, 4), elementwise_affine=False),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.PReLU(4),
    lambda: nn.GELU("tanh"),
    lambda: nn.Hardtanh(-1.5, 2.0),
    lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    lambda: nn.AdaptiveAvgPool2d((None, 2)),
    lambda: nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False),
    lambda: nn.Embedding(5, 3, padding_idx=0),
    lambda: nn.Flatten(2),
    lambda: nn.Identity(),
]


@pytest.mark.parametrize("make", TORCH_S_OWN)
def test_a_module_of_torch_is_built_as_it_was(make: Callable[[], nn.Module]) -> None:
    module = make()
    recipe = recipe_of(module)
    assert recipe is not None
    again = build(recipe)
    assert repr(again) == repr(module)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in module.state_dict().items()
    }
    assert not again.training


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sin()


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnConv(3, 4, 1),
        lambda: nn.Sequential(nn.ReLU()),
        lambda: nn.MultiheadAttention(4, 2),
    ],
)
def test_a_module_that_its_arguments_do_not_tell_of_has_no_recipe(
    make: Callable[[], nn.Module],
) -> None:
    assert recipe_of(make()) is None


def test_a_module_whose_forward_was_replaced_has_no_recipe() -> None:
    module = nn.ReLU()
    module.forward = lambda x: x  # type: ignore[method-assign]
    assert recipe_of(module) is None


class Shifted(nn.Module):
    """A scale and shift that nothing folds: it stands between two rectifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x.relu()) * 2.0).relu()


MERGED: list[tuple[type[nn.Module], Callable[[], nn.Module], int]] = [
    (BorderedConv, lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1)), 16),
    (
        BorderCorrectedConv,
        lambda: nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)),
        64,
    ),
    (ChannelAffine, Shifted, 8),
]


@pytest.mark.parametrize(("kind", "make", "pixels"), MERGED)
def test_what_merging_leaves_behind_is_saved_and_loaded_without_a_model(
    kind: type[nn.Module], make: Callable[[], nn.Module], pixels: int, tmp_path: Path
) -> None:
    x = torch.randn(2, 3, pixels, pixels)
    reduced = fxreduce.fuse(seeded(make), example_inputs=x)
    assert kind in {type(module) for module in reduced.modules()}
    fxreduce.save(reduced, tmp_path / "model")
    loaded = fxreduce.load(tmp_path / "model")
    assert kind in {type(module) for module in loaded.modules()}
    assert torch.equal(loaded(x), reduced(x))
    assert loaded.state_dict().keys() == reduced.state_dict().keys()
