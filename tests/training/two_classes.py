"""Small images of two classes, and networks that tell them apart, for the tests of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxreduce.data.dataset import DataSet


@dataclass(frozen=True)
class Tensors:
    """Samples that are there already; varied by noise."""

    inputs: Tensor
    labels: Tensor

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.labels[indices]

    def vary(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(
            self.inputs.shape,
            generator=torch.Generator().manual_seed(seed),
            dtype=self.inputs.dtype,
        )
        return self.inputs[indices] + 0.1 * noise[indices], self.labels[indices]


def two_classes(images: int = 256, dtype: torch.dtype = torch.float32) -> DataSet:
    """Noise whose left or right half is brighter, and which one it is; half of it to train on."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (images,), generator=random)
    inputs = torch.randn(images, 1, 8, 8, generator=random, dtype=dtype)
    inputs[..., :4] += labels.view(-1, 1, 1, 1) * 2
    train, validation, test = torch.arange(images).split([images // 2, images // 4, images // 4])
    return DataSet("two classes", 2, Tensors(inputs, labels), train, validation, test)


def small_network(seed: int = 0) -> nn.Module:
    """One convolution with a batch-norm, and a Linear."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(512, 2),
    )


def network_without_statistics() -> nn.Module:
    """A network whose output for an image does not depend on the others of its batch."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)]
    return nn.Sequential(*layers).double()


def network_with_statistics() -> nn.Module:
    """A network with batch-norms of two kinds: one has weights, the other the mean of batches."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    last = [nn.BatchNorm1d(4 * 36, momentum=None, affine=False), nn.Linear(4 * 36, 2)]
    return nn.Sequential(*layers, *last).double()
