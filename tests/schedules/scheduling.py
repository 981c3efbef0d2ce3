"""A tiny task, a network for it with every kind of site, and a stage to try rules on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxreduce import schedules
from fxreduce.calibration.loader import Loader
from fxreduce.graph.feeding import Feeding
from fxreduce.graph.rectifiers import find_sites
from fxreduce.planning.prepare import prepare
from fxreduce.schedules.network import Network
from fxreduce.schedules.rounds import Round
from fxreduce.schedules.rule import Stage


class Mixed(nn.Module):
    """A shared rectifier behind batch-norms and a sum, a clipped one, a GELU on features.

    Sites in order: relu, relu#1, relu#2 (behind the sum), clip (depthwise), gelu.
    """

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.clip = nn.ReLU6()
        self.drop = nn.Dropout(0.1)
        self.features = nn.Linear(width * 16, 6)
        self.gelu = nn.GELU()
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(images)))
        y = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(y)) + x)
        x = self.clip(self.depthwise(x))
        return self.head(self.gelu(self.features(self.drop(x.flatten(1)))))


SITES = ("relu", "relu#1", "relu#2", "clip", "gelu")


def mixed(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """The network with seeded weights, in eval mode."""
    torch.manual_seed(seed)
    return Mixed().to(dtype).eval()


class Task:
    """Images with labels by a random rule, and what a schedule needs to learn them."""

    def __init__(
        self, count: int = 48, batch: int = 16, dtype: torch.dtype = torch.float64
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64).to(
            dtype
        )
        rule = torch.randn(48, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.labels = (self.images.flatten(1).relu() @ rule).argmax(1)
        self.batch = batch
        self.trainings = 0

    @property
    def loader(self) -> list[Tensor]:
        return list(self.images.split(self.batch))

    def train(self, module: nn.Module, epochs: int = 2, rate: float = 0.05) -> None:
        """Draws its order, and dropout, from the global generator."""
        self.trainings += 1
        trained = [each for each in module.parameters() if each.requires_grad]
        optimiser = torch.optim.SGD(trained, rate, momentum=0.9)
        for _ in range(epochs):
            schedules.begin_epoch(module)
            for chosen in torch.randperm(len(self.labels)).split(self.batch):
                outputs = module(self.images[chosen])
                loss = functional.cross_entropy(outputs, self.labels[chosen])
                loss = schedules.distil(module, loss, outputs, self.images[chosen])
                loss = loss + schedules.auxiliary_loss(module)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    def evaluate(self, module: nn.Module) -> float:
        return float((module(self.images).argmax(1) == self.labels).double().mean())


def never(module: nn.Module) -> None:
    """A training that changes nothing."""


def stage_of(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    evaluate: Callable[[nn.Module], float] = lambda module: 0.5,
    train: Callable[[nn.Module], None] = never,
) -> Stage:
    """The stage in which a schedule asks its rule for the first time."""
    graph_module, calibration, _ = prepare(model, Loader(batches, keep=True), None, None, False)
    network = Network.of(graph_module)
    feeding = Feeding(network.base)
    feeds = {site.name: feeding.of(site) for site in find_sites(network.base)}
    done = (Round(0, 0.5),)
    return Stage(network, network.sites, done, calibration, feeds, {}, train, evaluate)
