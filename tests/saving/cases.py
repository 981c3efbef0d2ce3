"""The models that are written in every format, reduced; the larger ones in the zoo's own run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
from torch import nn
from torchvision import models

from tests.models import Residual, Small
from tests.saving.reduced import Reduced

timm = pytest.importorskip("timm", reason="the zoo's models are an extra")
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small": (Small, (2, 3, 8, 8)),
    "residual": (Residual, (2, 3, 8, 8)),
    "resnet18": (models.resnet18, (2, 3, 32, 32)),
    "mobilenet_v2": (models.mobilenet_v2, (2, 3, 32, 32)),
    "swin_t": (models.swin_t, (1, 3, 32, 32)),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32), (2, 3, 32, 32)),
    "tf_efficientnet_b0": (lambda: timm.create_model("tf_efficientnet_b0"), (1, 3, 32, 32)),
}


def cases(names: Collection[str], quick: Collection[str]) -> list[Any]:
    """Parameters by name, those that are not quick marked."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.zoo) for name in names]


def case(name: str) -> Reduced:
    make, shape = MODELS[name]
    return Reduced.of(make, *shape)
