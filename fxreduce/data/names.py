"""From the name of a data set to its samples, split by a seed into parts that never overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from fxreduce.data.dataset import Batches, DataSet
from fxreduce.data.digits import open_digits
from fxreduce.data.folders import open_domains, open_imagefolder, open_tiny_imagenet
from fxreduce.data.formats import ImageFormat, TextFormat
from fxreduce.data.glue import TASKS, open_glue
from fxreduce.data.torchvision_sets import KNOWN, open_torchvision
from fxreduce.errors import UnsupportedError

Format = ImageFormat | TextFormat


class _Opener(Protocol):
    def __call__(self, name: str, root: Path, images: ImageFormat, *, seed: int) -> DataSet: ...


_WITHOUT_ROOT: dict[str, Callable[..., DataSet]] = {
    "digits": open_digits,
    "digits-frontier": partial(open_digits, frontier=True),
}
_WITH_ROOT: dict[str, _Opener] = {
    **dict.fromkeys(KNOWN, open_torchvision),
    "tiny-imagenet": open_tiny_imagenet,
    **dict.fromkeys(("pacs", "vlcs"), open_domains),
    "imagefolder": open_imagefolder,
}
NAMES = (
    *_WITHOUT_ROOT,
    *(f"{name}:ROOT" for name in _WITH_ROOT),
    *(f"{name}:ROOT" for name in TASKS),
)


@dataclass(frozen=True)
class Data:
    """Batches to calibrate on, and batches that no decision looks at, to judge the result by."""

    name: str
    calibration: Batches
    held_out: Batches


def open_data(name: str, form: Format, *, seed: int) -> DataSet:
    """Open the data called `name` and split it.

    Args:
        name: One of `NAMES`, with the folder that the files lie in for ROOT.
        form: What the model takes.
        seed: Seed of the split, where the data set has none of its own.

    Raises:
        UnsupportedError: The name is unknown, its package is missing, or the model takes text and
            the data are images, or the other way round.
        CalibrationError: The folder is missing, or laid out in another way; the message says how
            it should look.
    """
    kind, _, root = name.partition(":")
    if kind in TASKS and root:
        if not isinstance(form, TextFormat):
            raise UnsupportedError(
                f"{kind} holds text, the model takes images; --tokenizer FOLDER and a model that "
                "takes input_ids go with it"
            )
        return open_glue(name, Path(root), form, seed=seed)
    if name in _WITHOUT_ROOT or (kind in _WITH_ROOT and root):
        if not isinstance(form, ImageFormat):
            raise UnsupportedError(f"{kind} holds images, the model takes text")
        if name in _WITHOUT_ROOT:
            return _WITHOUT_ROOT[name](name, form.channels, form.size, seed=seed)
        return _WITH_ROOT[kind](name, Path(root), form, seed=seed)
    raise UnsupportedError(f"data are named {', '.join(NAMES)}; got {name!r}")


def load_data(name: str, form: Format, *, samples: int, batch_size: int, seed: int) -> Data:
    """Open data for a model that is trained already.

    It is calibrated on the validation part, which it was probably not trained on, and where that
    does not suffice on the training part, too. It is judged on the test part.

    Args:
        name: See `open_data`.
        form: What the model takes.
        samples: At most so many samples to calibrate on, and to judge on.
        batch_size: Samples a batch.
        seed: Seed of the split.

    Raises:
        UnsupportedError, CalibrationError: As of `open_data`.
    """
    data = open_data(name, form, seed=seed)
    calibration = torch.cat((data.validation, data.train))[:samples]
    return Data(
        name,
        Batches(data.source, calibration, batch_size),
        Batches(data.source, data.test[:samples], batch_size),
    )
