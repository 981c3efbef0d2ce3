"""Images that are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fxreduce.data.formats import ImageFormat
from fxreduce.data.transforms import Transform, Variation, transform
from fxreduce.errors import CalibrationError, UnsupportedError

_MODES = {1: "L", 3: "RGB"}
_SPREAD = 1_000_003  # more than images of a data set: no two pairs of seed and index meet


class Pictures(Protocol):
    """Pillow images with labels by index, as torchvision's data sets hold them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


@dataclass(frozen=True)
class Files:
    """Image files and the class index of each."""

    samples: Sequence[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The decoded image and its class index.

        Raises:
            CalibrationError: The file is not a readable image; the message names it.
        """
        from PIL import Image

        path, label = self.samples[index]
        try:
            with Image.open(path) as image:
                image.load()
                return image, label
        # Pillow raises SyntaxError and ValueError, not only OSError, on broken headers.
        except (OSError, SyntaxError, ValueError) as error:
            raise CalibrationError(
                f"{path} is not a readable image ({error}); mend it or take it away"
            ) from error


@dataclass(frozen=True)
class ImageSource:
    """Decoded images, brought into the format that a model takes.

    Attributes:
        pictures: The images with their labels.
        mode: Pillow's colour mode, grey or RGB.
        plain: From a Pillow image to a normalised tensor `[C, H, W]`, as a model is judged on it.
        varied: The same as a model is trained on it; draws from torch's random numbers.
    """

    pictures: Pictures
    mode: str
    plain: Transform
    varied: Transform

    @classmethod
    def of(
        cls, pictures: Pictures, images: ImageFormat, plain: Variation, varied: Variation
    ) -> ImageSource:
        """The images in the format that a model takes.

        Raises:
            UnsupportedError: torchvision is not installed, or the model takes neither grey nor
                colour images.
        """
        if images.channels not in _MODES:
            raise UnsupportedError(
                f"image files have 1 or 3 channels; the model takes {images.channels}"
            )
        mode = _MODES[images.channels]
        return cls(pictures, mode, transform(images, plain), transform(images, varied))

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images `[N, C, H, W]` at `indices` `[N]` and their class indices `[N]`."""
        return _stacked([self._sample(index, self.plain) for index in indices.tolist()])

    def vary(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """As `fetch`, each image varied by `seed` and its index."""
        samples = []
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as they were
            for index in indices.tolist():
                torch.manual_seed(_SPREAD * seed + index)
                samples.append(self._sample(index, self.varied))
        return _stacked(samples)

    def _sample(self, index: int, prepare: Transform) -> tuple[Tensor, int]:
        picture, label = self.pictures[index]
        return prepare(picture.convert(self.mode)), int(label)


def _stacked(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
