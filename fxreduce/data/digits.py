"""scikit-learn's real handwritten digits: 1797 grey images of 8x8 pixels that need no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fxreduce.data.dataset import DataSet, seeded_split
from fxreduce.errors import missing_extra

_TRAIN, _CALIBRATION = 900, 500  # the other 397 are the test images
_BRIGHTEST = 16.0


@dataclass(frozen=True)
class Motion:
    """How far an image is moved at most, and the noise that is laid over it.

    Attributes:
        turn: Radians, either way.
        stretch: Fraction of the size, either way.
        shift: Fraction of half a side, either way, along both axes.
        noise: Standard deviation of the noise of every pixel, in standard deviations of the images.
    """

    turn: float
    stretch: float
    shift: float
    noise: float = 0.0

    def __call__(self, images: Tensor, amounts: Tensor) -> Tensor:
        """The images `[N, C, H, W]`, each moved by its `amounts` `[N, 4]`, from −1 to 1 each."""
        turn, stretch, right, down = amounts.unbind(1)
        angle, scale = self.turn * turn, 1 + self.stretch * stretch
        rows = (
            torch.stack((scale * angle.cos(), -scale * angle.sin(), self.shift * right), dim=1),
            torch.stack((scale * angle.sin(), scale * angle.cos(), self.shift * down), dim=1),
        )
        theta = torch.stack(rows, dim=1)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


TRAINING = Motion(turn=0.2, stretch=0.1, shift=0.2)
# Far enough that a network needs its depth: all parts of `digits-frontier` are moved by it.
FRONTIER = Motion(turn=0.35, stretch=0.15, shift=0.4, noise=0.35)


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
        frontier: The seed by which every image is moved and noisy, also where a model is judged;
            None leaves them as they are.
    """

    pixels: Tensor
    labels: Tensor
    channels: int
    size: tuple[int, int]
    train: Tensor
    calibration: Tensor
    test: Tensor
    frontier: int | None = None

    @classmethod
    def load(
        cls, channels: int, size: tuple[int, int], *, seed: int, frontier: bool = False
    ) -> Digits:
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
        train, calibration, test = seeded_split(len(labels), (_TRAIN, _CALIBRATION), seed=seed)
        # Statistics of the training images alone: the others must not leak into the input.
        pixels = (pixels - pixels[train].mean()) / pixels[train].std()
        moved = seed if frontier else None
        return cls(pixels, labels, channels, size, train, calibration, test, moved)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images `[N, channels, *size]` at `indices` `[N]` and their labels `[N]`."""
        images = self._enlarged(indices)
        if self.frontier is not None:
            images = self._moved(images, indices, FRONTIER, self.frontier)
        return images.repeat(1, self.channels, 1, 1), self.labels[indices]

    def vary(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """As `fetch`, each image moved anew by `seed`."""
        motion = TRAINING if self.frontier is None else FRONTIER
        images = self._moved(self._enlarged(indices), indices, motion, seed)
        return images.repeat(1, self.channels, 1, 1), self.labels[indices]

    def _enlarged(self, indices: Tensor) -> Tensor:
        return functional.interpolate(
            self.pixels[indices], size=self.size, mode="bilinear", align_corners=False
        )

    def _moved(self, images: Tensor, indices: Tensor, motion: Motion, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        # Drawn for all images, so that what happens to one does not depend on its batch.
        amounts = 2 * torch.rand(len(self), 4, generator=random)[indices] - 1
        images = motion(images, amounts)
        if motion.noise:
            noise = torch.randn(len(self), *images.shape[1:], generator=random)
            images = images + motion.noise * noise[indices]
        return images


def open_digits(
    name: str, channels: int, size: tuple[int, int], *, seed: int, frontier: bool = False
) -> DataSet:
    """The digits as a data set; the images to calibrate on are those for validation."""
    digits = Digits.load(channels, size, seed=seed, frontier=frontier)
    return DataSet(name, 10, digits, digits.train, digits.calibration, digits.test)
