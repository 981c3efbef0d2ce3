"""From a data name on the command line to batches of images with labels.

Every source is split once, by a seed, into images to calibrate on and images to judge by; no image
is in both. Images are made a batch at a time, so that no data set has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxreduce.cli.digits import Digits
from fxreduce.cli.imagefolder import ImageFolderSource
from fxreduce.cli.models import ImageFormat
from fxreduce.errors import UnsupportedError


class Source(Protocol):
    """Labelled images that can be asked for by index."""

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images `[N, C, H, W]` at `indices` `[N]`, normalised, and their labels `[N]`."""


@dataclass(frozen=True)
class Batches:
    """The images of `source` at `indices`, in this order; can be iterated any number of times."""

    source: Source
    indices: Tensor
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self.indices.split(self.batch_size):
            yield self.source.fetch(indices)


@dataclass(frozen=True)
class Data:
    """Batches to calibrate on, and batches that no decision looks at, to judge the result by."""

    name: str
    calibration: Batches
    held_out: Batches


def load_data(name: str, images: ImageFormat, *, samples: int, batch_size: int, seed: int) -> Data:
    """Open the data called `name` and split it.

    Args:
        name: `digits` or `imagefolder:ROOT`.
        images: What the model takes.
        samples: At most so many images in each part. Of a folder with fewer, a quarter is held
            out and the rest is for calibration.
        batch_size: Images a batch.
        seed: Seed of the split.

    Raises:
        UnsupportedError: The name is unknown or its package is missing.
        CalibrationError: The folder is missing, or laid out in another way.
    """
    kind, _, root = name.partition(":")
    source: Source
    if name == "digits":
        source = digits = Digits.load(images.channels, images.size, seed=seed)
        calibration, held_out = digits.calibration[:samples], digits.test[:samples]
    elif kind == "imagefolder" and root:
        source = folder = ImageFolderSource.open(root, images)
        order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(seed))
        kept = min(samples, max(1, len(folder) // 4))
        held_out, calibration = order[:kept], order[kept:][:samples]
    else:
        raise UnsupportedError(f"data are named digits or imagefolder:ROOT; got {name!r}")
    return Data(
        name, Batches(source, calibration, batch_size), Batches(source, held_out, batch_size)
    )
