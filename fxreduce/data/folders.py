"""Data sets that are folders of image files: ImageFolder, Tiny-ImageNet-200, PACS and VLCS.

The files of each are listed, brought into one order and split by a seed, where the data set has
no split of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from fxreduce.data.dataset import DataSet, seeded_split
from fxreduce.data.formats import ImageFormat
from fxreduce.data.images import Files, ImageSource
from fxreduce.data.transforms import Variation, centre, cropped, flipped, jittered, whole
from fxreduce.errors import CalibrationError

Samples = list[tuple[str, int]]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_FOLDER = "the layout is ROOT/CLASS/IMAGE.jpg, one folder per class"
_SPLIT = f"{_FOLDER}, or ROOT/train/CLASS/IMAGE.jpg and ROOT/val/CLASS/IMAGE.jpg"
_TINY = (
    "the layout is ROOT/train/WNID/images/*.JPEG, ROOT/val/images/*.JPEG and "
    "ROOT/val/val_annotations.txt, as tiny-imagenet-200.zip unpacks"
)
_DOMAINS = {
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
    "vlcs": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
}


def open_imagefolder(name: str, root: Path, images: ImageFormat, *, seed: int) -> DataSet:
    """A folder per class; or ImageNet's layout, whose `val` is then the test part.

    Raises:
        CalibrationError: There is no such folder, or it has no class folders with images.
    """
    _check_folder(root, _SPLIT)
    if all((root / part).is_dir() for part in ("train", "val")):
        classes = _classes(root / "train", _SPLIT)
        train = _by_class(root / "train", classes, _SPLIT)
        test = _by_class(root / "val", classes, _SPLIT)
        return _with_test(name, classes, train, test, images, (centre, cropped), seed=seed)
    classes = _classes(root, _FOLDER)
    samples = _by_class(root, classes, _FOLDER)
    return _split(name, classes, samples, images, (centre, cropped), seed=seed)


def open_tiny_imagenet(name: str, root: Path, images: ImageFormat, *, seed: int) -> DataSet:
    """Tiny-ImageNet-200; its validation images, the only ones held out with labels, are the test.

    Raises:
        CalibrationError: The folder is missing, or laid out in another way.
    """
    _check_folder(root, _TINY)
    annotations = root / "val" / "val_annotations.txt"
    if not (root / "train").is_dir() or not annotations.is_file():
        raise CalibrationError(f"{root} is not Tiny-ImageNet-200; {_TINY}")
    classes = _classes(root / "train", _TINY)
    train = _by_class(root / "train", classes, _TINY)
    number = {wnid: index for index, wnid in enumerate(classes)}
    test = []
    for line, text in enumerate(annotations.read_text().splitlines(), 1):
        file, wnid = (*text.split("\t"), "", "")[:2]
        if wnid not in number:
            raise CalibrationError(
                f"{annotations}, line {line}: an image and one of the {len(classes)} classes of "
                f"{root / 'train'}, apart by a tab, are expected; seen: {text!r}"
            )
        test.append((str(root / "val" / "images" / file), number[wnid]))
    return _with_test(name, classes, train, test, images, (whole, flipped), seed=seed)


def open_domains(name: str, root: Path, images: ImageFormat, *, seed: int) -> DataSet:
    """PACS or VLCS, all domains together, each with the same classes.

    Raises:
        CalibrationError: A domain is missing, or has other classes than the first.
    """
    kind = name.partition(":")[0]
    domains = _DOMAINS[kind]
    layout = f"the layout is ROOT/DOMAIN/CLASS/IMAGE.jpg, with the domains {', '.join(domains)}"
    _check_folder(root, layout)
    missing = [domain for domain in domains if not (root / domain).is_dir()]
    if missing:
        raise CalibrationError(f"{root} has no folder {', '.join(missing)}; {layout}")
    classes = _classes(root / domains[0], layout)
    samples: Samples = []
    for domain in domains:
        if (found := _classes(root / domain, layout)) != classes:
            raise CalibrationError(
                f"every domain of {kind} has the same classes; {domains[0]} has "
                f"{', '.join(classes)}, {domain} has {', '.join(found)}"
            )
        samples += _by_class(root / domain, classes, layout)
    return _split(name, classes, samples, images, (centre, jittered), seed=seed)


def _check_folder(root: Path, layout: str) -> None:
    if not root.is_dir():
        raise CalibrationError(f"there is no folder {root}; {layout}")


def _classes(root: Path, layout: str) -> list[str]:
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not found:
        raise CalibrationError(f"{root} has no folders of classes; {layout}")
    return found


def _by_class(root: Path, classes: Iterable[str], layout: str) -> Samples:
    """The images under each class's folder, sorted by path.

    Raises:
        CalibrationError: A class has no image.
    """
    samples: Samples = []
    for label, wanted in enumerate(classes):
        found = sorted(
            path for path in (root / wanted).rglob("*") if path.suffix.lower() in _SUFFIXES
        )
        if not found:
            raise CalibrationError(f"{root / wanted} holds no image; {layout}")
        samples += [(str(path), label) for path in found]
    return samples


def _split(
    name: str,
    classes: list[str],
    samples: Samples,
    images: ImageFormat,
    variations: tuple[Variation, Variation],
    *,
    seed: int,
) -> DataSet:
    """A quarter to test on, an eighth for validation, the rest to train on."""
    if len(samples) < 2:
        raise CalibrationError(
            f"{name} holds one image; at least two are needed, one to calibrate on and one to "
            "judge the result by"
        )
    sizes = max(1, len(samples) // 4), len(samples) // 8
    test, validation, train = seeded_split(len(samples), sizes, seed=seed)
    source = ImageSource.of(Files(samples), images, *variations)
    return DataSet(name, len(classes), source, train, validation, test)


def _with_test(
    name: str,
    classes: list[str],
    train: Samples,
    test: Samples,
    images: ImageFormat,
    variations: tuple[Variation, Variation],
    *,
    seed: int,
) -> DataSet:
    """The data set's own test images; a tenth of the others is for validation."""
    validation, rest = seeded_split(len(train), (len(train) // 10,), seed=seed)
    source = ImageSource.of(Files(train + test), images, *variations)
    tested = torch.arange(len(train), len(train) + len(test))
    return DataSet(name, len(classes), source, rest, validation, tested)
