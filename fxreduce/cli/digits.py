"""scikit-learn's real handwritten digits: 1797 grey images of 8x8 pixels that need no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fxreduce.errors import missing_extra

_TRAIN, _CALIBRATION = 900, 500  # the other 397 are the test images
_BRIGHTEST = 16.0


@dataclass(frozen=True)
class Digits:
    """The digits at a size of choice, and the indices of a seeded split into three disjoint parts.

    Attributes:
        pixels: `[1797, 1, 8, 8]`, of zero mean and unit variance over the training images.
        labels: `[1797]`, 0 to 9.
        channels: How often the grey channel is repeated.
        size: Height and width that the images are enlarged to, bilinearly.
        train: Indices to train on.
        calibration: Indices to measure rectifiers and to choose among them on.
        test: Indices that nothing but the final figures may look at.
    """

    pixels: Tensor
    labels: Tensor
    channels: int
    size: tuple[int, int]
    train: Tensor
    calibration: Tensor
    test: Tensor

    @classmethod
    def load(cls, channels: int, size: tuple[int, int], *, seed: int) -> Digits:
        """Read the digits and split them by `seed`.

        Raises:
            UnsupportedError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise missing_extra("scikit-learn", "the digits data", "demo") from None
        raw = load_digits()
        pixels = torch.from_numpy(raw.images).float().unsqueeze(1) / _BRIGHTEST
        labels = torch.from_numpy(raw.target).long()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        train, calibration, test = order.tensor_split([_TRAIN, _TRAIN + _CALIBRATION])
        # Statistics of the training images alone: the others must not leak into the input.
        pixels = (pixels - pixels[train].mean()) / pixels[train].std()
        return cls(pixels, labels, channels, size, train, calibration, test)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images `[N, channels, *size]` at `indices` `[N]` and their labels `[N]`."""
        images = functional.interpolate(
            self.pixels[indices], size=self.size, mode="bilinear", align_corners=False
        )
        return images.repeat(1, self.channels, 1, 1), self.labels[indices]
