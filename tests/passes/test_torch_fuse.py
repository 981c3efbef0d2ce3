"""Where torch.fx.experimental.optimization.fuse is wrong, merging is right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import RELATIVE, assert_close, randomised
from torch import Tensor, nn
from torch.fx.experimental import optimization

import fxreduce
from fxreduce.graph.compare import difference


class CalledTwice(nn.Module):
    """A convolution's module that is called twice; a batch-norm follows one call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.relu(self.conv(x))))


class SharedByTwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.conv(x)) * self.two(self.conv(x + 1))


class OtherAxis(nn.Module):
    """Linear on the last axis, batch-norm on axis 1 of as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))


WRONG = [
    (CalledTwice, (2, 4, 5, 5)),
    (SharedByTwoNorms, (2, 4, 5, 5)),
    (OtherAxis, (2, 4, 4)),
]


def different_norms(model: nn.Module) -> nn.Module:
    model = randomised(model)
    for index, module in enumerate(model.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.detach().mul_(index + 1)
    return model


@pytest.mark.parametrize(("make", "shape"), WRONG)
def test_torchs_own_fusion_is_wrong_and_ours_is_right(
    make: type[nn.Module], shape: tuple[int, ...]
) -> None:
    model, x = different_norms(make()), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected, theirs = model(x), optimization.fuse(model)(x)
        assert difference(expected, theirs).max_rel > 1e6 * RELATIVE
        assert_close(expected, fxreduce.fuse(model)(x))
        assert_close(expected, fxreduce.fuse(model, example_inputs=x)(x))
