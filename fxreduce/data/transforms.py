"""From a Pillow image to what a model takes: as it is judged, and varied as it is trained.

The variations are those that the methods' publications name for each data set, by
torchvision.transforms.v2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxreduce.data.formats import ImageFormat
from fxreduce.errors import missing_extra

Transform = Callable[[Any], Tensor]
Variation = Callable[[Any, tuple[int, int]], list[Any]]  # torchvision's v2 module, size -> steps

_CROP = 0.875  # the side of the centre crop over the image's shorter side, as for ImageNet
_PADDING = 4  # pixels of a shift
_JITTER = 0.4
_DEGREES = 30


def whole(v2: Any, size: tuple[int, int]) -> list[Any]:
    """The whole image at `size`."""
    return [v2.Resize(size, antialias=True)]


def centre(v2: Any, size: tuple[int, int]) -> list[Any]:
    """The centre crop that ImageNet's published models are judged by."""
    return [v2.Resize(round(max(size) / _CROP), antialias=True), v2.CenterCrop(size)]


def shifted(v2: Any, size: tuple[int, int]) -> list[Any]:
    """Flipped, and shifted by up to four pixels: CIFAR-10."""
    crop = v2.RandomCrop(size, padding=_PADDING)
    return [*whole(v2, size), v2.RandomHorizontalFlip(), crop]


def flipped(v2: Any, size: tuple[int, int]) -> list[Any]:
    """The whole image, flipped: Tiny-ImageNet."""
    return [*whole(v2, size), v2.RandomHorizontalFlip()]


def centre_flipped(v2: Any, size: tuple[int, int]) -> list[Any]:
    """The centre crop, flipped along both axes: DTD, FGVC-Aircraft."""
    return [*centre(v2, size), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]


def turned(v2: Any, size: tuple[int, int]) -> list[Any]:
    """Flipped along both axes, turned and cropped: Flowers-102."""
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    return [*flips, v2.RandomRotation(_DEGREES), v2.RandomResizedCrop(size, antialias=True)]


def cropped(v2: Any, size: tuple[int, int]) -> list[Any]:
    """A crop at random, flipped: ImageNet and other folders of images."""
    return [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]


def jittered(v2: Any, size: tuple[int, int]) -> list[Any]:
    """A crop at random, flipped, its colours jittered: PACS, VLCS."""
    return [*cropped(v2, size), v2.ColorJitter(_JITTER, _JITTER, _JITTER, _JITTER)]


def transform(images: ImageFormat, variation: Variation) -> Transform:
    """The steps of a variation, then the tensor `[C, H, W]`, normalised as the model takes it.

    Raises:
        UnsupportedError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise missing_extra("torchvision", "images from files", "zoo") from None
    composed: Transform = v2.Compose(
        [
            *variation(v2, images.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(images.mean), list(images.std)),
        ]
    )
    return composed
