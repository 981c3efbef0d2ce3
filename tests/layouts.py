"""Tiny copies of the layouts in which published data sets lie on disk."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GLUE = {
    "sst2": ("sentence\tlabel", "a {} film\t{}", ("0", "1")),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "{}\tit rains\tit is {}\t{}",
        ("entailment", "not_entailment"),
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        '{}\twho "asks"\tit is {}\t{}',
        ("entailment", "not_entailment"),
    ),
}


def image(path: Path, brightness: int = 100, size: tuple[int, int] = (40, 32)) -> None:
    """A grey-level RGB image, without loss of its value in any format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (brightness,) * 3).save(path)


def by_class(root: Path, classes: Iterable[str], count: int, suffix: str = "jpg") -> None:
    """`count` images in a folder for each class."""
    for number, name in enumerate(classes):
        for index in range(count):
            image(root / name / f"{index}.{suffix}", 20 * number + index)


def tiny_imagenet(root: Path) -> None:
    """Three classes of ten training images; three validation images in another order."""
    classes = ("n01", "n02", "n03")
    for name in classes:
        for index in range(10):
            image(root / "train" / name / "images" / f"{name}_{index}.JPEG", index)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    lines = []
    for index, name in enumerate(("n03", "n01", "n02")):
        image(root / "val" / "images" / f"val_{index}.JPEG", 60 + index)
        lines.append(f"val_{index}.JPEG\t{name}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def domains(root: Path, names: Iterable[str]) -> None:
    """Two classes of four images in each domain."""
    for name in names:
        by_class(root / name, ("dog", "horse"), 4)


def cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Five files of four images and a test file of three, in the published files' format."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        count = 3 if name == "test_batch" else 4
        content = {
            "data": np.full((count, 3072), 3, dtype=np.uint8),
            "labels": [index % 10 for index in range(count)],
        }
        sums[name] = _written(folder / name, pickle.dumps(content))
    names = {"label_names": [str(number) for number in range(10)]}
    meta = _written(folder / "batches.meta", pickle.dumps(names))
    # The published sums: another file is not even opened.
    patch.setattr(CIFAR10, "train_list", [[n, s] for n, s in sums.items() if "data" in n])
    patch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Nine images of three classes, three in each split."""
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    for index in range(1, 10):
        image(folder / "jpg" / f"image_{index:05d}.jpg", 10 * index)
    savemat(folder / "imagelabels.mat", {"labels": [index % 3 + 1 for index in range(9)]})
    savemat(folder / "setid.mat", {"trnid": [1, 2, 3], "valid": [4, 5, 6], "tstid": [7, 8, 9]})
    sums = {
        "label": ("imagelabels.mat", _md5((folder / "imagelabels.mat").read_bytes())),
        "setid": ("setid.mat", _md5((folder / "setid.mat").read_bytes())),
    }
    patch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **sums})


def dtd(root: Path) -> None:
    """Two textures of three images, one in each split."""
    folder = root / "dtd" / "dtd"
    by_class(folder / "images", ("banded", "dotted"), 3)
    (folder / "labels").mkdir()
    for index, split in enumerate(("train", "val", "test")):
        lines = f"banded/{index}.jpg\ndotted/{index}.jpg\n"
        (folder / "labels" / f"{split}1.txt").write_text(lines)


def aircraft(root: Path) -> None:
    """Two variants, one image of each in each split."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\nAn-12\n")
    for index, split in enumerate(("train", "val", "test")):
        lines = []
        for number, variant in enumerate(("707-320", "An-12")):
            name = f"{index}{number}"
            image(folder / "images" / f"{name}.jpg")
            lines.append(f"{name} {variant}\n")
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))


def glue(root: Path, task: str) -> None:
    """Twenty training texts and six others."""
    header, line, labels = GLUE[task]
    root.mkdir(parents=True, exist_ok=True)
    for file, count in (("train.tsv", 20), ("dev.tsv", 6)):
        filled = [
            line.format(*(("fine",) if task == "sst2" else (index, "wet")), labels[index % 2])
            for index in range(count)
        ]
        (root / file).write_text("\n".join((header, *filled)) + "\n")


def tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "fine",
        "film",
        "it",
        "rains",
        "is",
        "wet",
        "who",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "saved")
    return folder / "saved"


def _written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return _md5(content)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
