"""Data sets that torchvision reads: CIFAR-10, Flowers-102, DTD and FGVC-Aircraft.

Nothing is downloaded. CIFAR-10's files hold pickles: torchvision reads them only if their MD5 sums
are those of the published files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from fxreduce.data.dataset import DataSet, seeded_split
from fxreduce.data.formats import ImageFormat
from fxreduce.data.images import ImageSource
from fxreduce.data.transforms import Variation, centre, centre_flipped, shifted, turned, whole
from fxreduce.errors import CalibrationError, first_line, missing_extra


@dataclass(frozen=True)
class Known:
    """One of torchvision's data sets.

    Attributes:
        reader: Name of its class in torchvision.datasets.
        classes: How many classes it has.
        layout: What its root looks like.
        plain, varied: How images are prepared where a model is judged, and trained.
        parts: Names of its own splits for train, validation and test; None where it has train and
            test alone, and a tenth of the former is for validation.
    """

    reader: str
    classes: int
    layout: str
    plain: Variation
    varied: Variation
    parts: tuple[str, str, str] | None = ("train", "val", "test")


KNOWN = {
    "cifar10": Known(
        "CIFAR10",
        10,
        "ROOT/cifar-10-batches-py/ with data_batch_1 to 5, test_batch and batches.meta, as "
        "cifar-10-python.tar.gz unpacks",
        whole,
        shifted,
        None,
    ),
    "flowers102": Known(
        "Flowers102",
        102,
        "ROOT/flowers-102/ with the folder jpg (of 102flowers.tgz), imagelabels.mat and setid.mat",
        centre,
        turned,
    ),
    "dtd": Known(
        "DTD",
        47,
        "ROOT/dtd/dtd/ with the folders images and labels, as dtd-r1.0.1.tar.gz unpacks in "
        "ROOT/dtd",
        centre,
        centre_flipped,
    ),
    "aircraft": Known(
        "FGVCAircraft",
        100,
        "ROOT/fgvc-aircraft-2013b/data/ with images, variants.txt and images_variant_*.txt, as "
        "fgvc-aircraft-2013b.tar.gz unpacks",
        centre,
        centre_flipped,
    ),
}


def open_torchvision(name: str, root: Path, images: ImageFormat, *, seed: int) -> DataSet:
    """The data set that the part of `name` before its colon says.

    Raises:
        CalibrationError: The folder is missing, incomplete or laid out in another way.
        UnsupportedError: torchvision is not installed, or what it reads the files with.
    """
    known = KNOWN[name.partition(":")[0]]
    try:
        from torchvision import datasets
    except ImportError:
        raise missing_extra("torchvision", f"{name.partition(':')[0]} data", "zoo") from None
    reader = getattr(datasets, known.reader)
    if known.parts is None:
        parts = [_read(partial(reader, root, train=part), name, known) for part in (True, False)]
    else:
        parts = [_read(partial(reader, root, split=part), name, known) for part in known.parts]
    source = ImageSource.of(ConcatDataset(parts), images, known.plain, known.varied)
    lengths = [len(part) for part in parts]
    *trained, test = torch.arange(sum(lengths)).split(lengths)
    if len(trained) == 1:
        count = lengths[0]
        validation, train = seeded_split(count, (count // 10,), seed=seed)
    else:
        train, validation = trained
    return DataSet(name, known.classes, source, train, validation, test)


def _read(reader: Callable[..., Any], name: str, known: Known) -> Any:
    try:
        return reader(download=False)
    except ImportError as error:
        raise missing_extra(error.name or "scipy", f"{name} data", "zoo") from None
    except Exception as error:  # whatever its parsers raise on files that are not what they expect
        raise CalibrationError(
            f"{name} cannot be read: {_reason(error)}. The layout is {known.layout}"
        ) from error


def _reason(error: Exception) -> str:
    # torchvision advises to let it download, which the command line never does.
    return first_line(error).partition(". You can use download")[0]
