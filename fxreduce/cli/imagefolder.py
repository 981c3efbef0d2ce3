"""Images in a folder per class, read as the published models of torchvision and timm expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxreduce.cli.models import ImageFormat
from fxreduce.errors import CalibrationError, UnsupportedError, missing_extra

_CROP = 0.875  # the side of the centre crop over the image's shorter side, as for ImageNet
_LAYOUT = "the layout is ROOT/CLASS/IMAGE.jpg, one folder per class"
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageFolderSource:
    """The images under a root, decoded when they are asked for.

    Attributes:
        samples: Path and class index of every image, sorted by path.
        mode: Pillow's colour mode, grey or RGB.
        transform: From a Pillow image to a normalised tensor `[C, H, W]`.
    """

    samples: tuple[tuple[str, int], ...]
    mode: str
    transform: Callable[[Any], Tensor]

    @classmethod
    def open(cls, root: str, images: ImageFormat) -> ImageFolderSource:
        """List the images under `root`, one folder per class.

        Raises:
            UnsupportedError: torchvision is not installed, or the model takes neither grey nor
                colour images.
            CalibrationError: There is no such folder, or it has no class folders with images.
        """
        try:
            from torchvision import transforms
            from torchvision.datasets import ImageFolder
        except ImportError:
            raise missing_extra("torchvision", "imagefolder data", "zoo") from None
        if images.channels not in _MODES:
            raise UnsupportedError(
                f"an image folder has 1 or 3 channels; the model takes {images.channels}"
            )
        if not Path(root).is_dir():
            raise CalibrationError(f"there is no folder {root}; {_LAYOUT}")
        try:
            folder = ImageFolder(root)
        except FileNotFoundError as error:
            raise CalibrationError(f"{root}: {error}. {_LAYOUT}") from error
        if len(folder.samples) < 2:
            raise CalibrationError(
                f"{root} holds one image; at least two are needed, one to calibrate on and one to "
                "judge the result by"
            )
        steps = [
            transforms.Resize(round(max(images.size) / _CROP)),
            transforms.CenterCrop(images.size),
            transforms.ToTensor(),
            transforms.Normalize(images.mean, images.std),
        ]
        return cls(tuple(folder.samples), _MODES[images.channels], transforms.Compose(steps))

    def __len__(self) -> int:
        return len(self.samples)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images `[N, C, H, W]` at `indices` `[N]` and their class indices `[N]`.

        Raises:
            CalibrationError: A file is not a readable image; the message names it.
        """
        chosen = [self.samples[index] for index in indices.tolist()]
        images = torch.stack([self._decode(path) for path, _ in chosen])
        return images, torch.tensor([label for _, label in chosen])

    def _decode(self, path: str) -> Tensor:
        from PIL import Image

        try:
            with Image.open(path) as image:
                return self.transform(image.convert(self.mode))
        # Pillow raises SyntaxError and ValueError, not only OSError, on broken headers.
        except (OSError, SyntaxError, ValueError) as error:
            raise CalibrationError(
                f"{path} is not a readable image ({error}); mend it or take it away"
            ) from error
