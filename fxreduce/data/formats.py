"""What a model takes: the images or the text that a data set has to be brought into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY = ((0.449,), (0.226,))  # ImageNet's figures for one channel


@dataclass(frozen=True)
class ImageFormat:
    """The images that a model takes: `[N, channels, *size]`, normalised by `mean` and `std`."""

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(
        cls,
        channels: int,
        size: tuple[int, int],
        statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> ImageFormat:
        """A format with ImageNet's statistics where the model brings none of its own."""
        if statistics is None or len(statistics[0]) != channels:
            statistics = _IMAGENET if channels == 3 else (_GREY[0] * channels, _GREY[1] * channels)
        return cls(channels, size, *statistics)


@dataclass(frozen=True)
class TextFormat:
    """The text that a model takes: token numbers `[N, length]`, cut or padded to `length`.

    Attributes:
        tokenizer: Folder of a transformers tokenizer, as `save_pretrained` writes it.
        names: Inputs of the model; what else the tokenizer makes is left out. None keeps all.
        length: Tokens of every text.
    """

    tokenizer: Path
    names: tuple[str, ...] | None = None
    length: int = 128
