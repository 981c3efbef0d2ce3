"""Small models of kinds that the libraries of image classifiers lack."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def block(given: int, width: int) -> nn.Sequential:
    """A padded convolution, its batch-norm and a rectifier."""
    return nn.Sequential(
        nn.Conv2d(given, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


def widening(given: int, width: int) -> nn.Sequential:
    """A transposed convolution that doubles the size, its batch-norm and a rectifier."""
    return nn.Sequential(
        nn.ConvTranspose2d(given, width, 2, stride=2), nn.BatchNorm2d(width), nn.ReLU()
    )


class UNet(nn.Module):
    """Two levels down and up again, each level's values carried across by a cat."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter, self.down = block(3, width), block(width, 2 * width)
        self.bottom = block(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.widen_first, self.widen = widening(4 * width, 2 * width), widening(2 * width, width)
        self.up, self.leave = block(4 * width, 2 * width), block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.enter(image)
        second = self.down(self.pool(first))
        x = self.widen_first(self.bottom(self.pool(second)))
        x = self.widen(self.up(torch.cat((x, second), 1)))
        return self.head(self.leave(torch.cat((x, first), 1)))


class Audio(nn.Module):
    """A classifier of wave forms: strided convolutions, batch-norms and pooling along time."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for given, out, kernel, stride in (
            (1, width, 16, 4),
            (width, width, 3, 1),
            (width, 2 * width, 3, 1),
        ):
            layers += [nn.Conv1d(given, out, kernel, stride), nn.BatchNorm1d(out), nn.ReLU()]
            layers += [nn.MaxPool1d(2)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(2 * width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(wave).mean(-1))).log_softmax(-1)
