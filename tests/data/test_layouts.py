"""Every data set, read from a tiny copy of its layout; and what is said where it is another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import torch

from fxreduce.data.dataset import DataSet
from fxreduce.data.formats import ImageFormat, TextFormat
from fxreduce.data.names import load_data, open_data
from fxreduce.errors import CalibrationError, UnsupportedError

COLOUR = ImageFormat.of(3, (16, 16))
PACS = ("art_painting", "cartoon", "photo", "sketch")
VLCS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")


def make(kind: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    makers: dict[str, Callable[[], None]] = {
        "cifar10": lambda: layouts.cifar10(root, patch),
        "flowers102": lambda: layouts.flowers102(root, patch),
        "dtd": lambda: layouts.dtd(root),
        "aircraft": lambda: layouts.aircraft(root),
        "tiny-imagenet": lambda: layouts.tiny_imagenet(root),
        "pacs": lambda: layouts.domains(root, PACS),
        "vlcs": lambda: layouts.domains(root, VLCS),
        "imagefolder": lambda: layouts.by_class(root, ("cat", "dog"), 8),
    }
    makers[kind]()


def check(data: DataSet, sizes: tuple[int, int, int]) -> None:
    """The parts have these sizes, hold each sample once, and labels within the classes."""
    parts = (data.train, data.validation, data.test)
    assert tuple(map(len, parts)) == sizes
    together = torch.cat(parts).tolist()
    assert sorted(together) == list(range(sum(sizes)))
    _, labels = data.source.fetch(torch.tensor(together))
    assert 0 <= labels.min() <= labels.max() < data.classes


@pytest.mark.parametrize(
    ("kind", "sizes", "classes"),
    [
        ("cifar10", (18, 2, 3), 10),
        ("flowers102", (3, 3, 3), 102),
        ("dtd", (2, 2, 2), 47),
        ("aircraft", (2, 2, 2), 100),
        ("tiny-imagenet", (27, 3, 3), 3),
        ("pacs", (20, 4, 8), 2),
        ("vlcs", (20, 4, 8), 2),
        ("imagefolder", (10, 2, 4), 2),
    ],
)
def test_a_layout_is_read_and_split_into_parts_that_never_overlap(
    kind: str,
    sizes: tuple[int, int, int],
    classes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(kind, tmp_path, monkeypatch)
    data = open_data(f"{kind}:{tmp_path}", COLOUR, seed=1)
    assert data.classes == classes
    check(data, sizes)
    images, labels = data.source.fetch(data.test)
    assert images.shape == (sizes[2], 3, 16, 16)
    again = open_data(f"{kind}:{tmp_path}", COLOUR, seed=1)
    assert torch.equal(again.validation, data.validation)
    assert torch.equal(again.source.fetch(again.test)[0], images)
    # What happens to a sample for training depends on the seed and on it alone.
    whole, _ = data.source.vary(data.train, 5)
    assert whole.shape == (sizes[0], 3, 16, 16)
    assert torch.equal(data.source.vary(data.train[1:], 5)[0], whole[1:])
    calibration = load_data(f"{kind}:{tmp_path}", COLOUR, samples=2, batch_size=2, seed=1)
    assert next(iter(calibration.calibration))[0].shape == (2, 3, 16, 16)
    assert torch.equal(labels, data.source.fetch(data.test)[1])


def test_variations_differ_from_seed_to_seed(tmp_path: Path) -> None:
    layouts.domains(tmp_path, PACS)
    data = open_data(f"pacs:{tmp_path}", COLOUR, seed=0)
    state = torch.get_rng_state()
    one, other = (data.source.vary(data.train, seed)[0] for seed in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_of_tiny_imagenet_are_those_of_its_annotations(tmp_path: Path) -> None:
    layouts.tiny_imagenet(tmp_path)
    data = open_data(f"tiny-imagenet:{tmp_path}", COLOUR, seed=0)
    assert data.source.fetch(data.test)[1].tolist() == [2, 0, 1]


def test_imagenets_layout_keeps_its_validation_images_for_the_test(tmp_path: Path) -> None:
    layouts.by_class(tmp_path / "train", ("cat", "dog"), 10)
    layouts.by_class(tmp_path / "val", ("cat", "dog"), 3)
    data = open_data(f"imagefolder:{tmp_path}", COLOUR, seed=0)
    check(data, (18, 2, 6))
    assert data.source.fetch(data.test)[1].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("task", ["sst2", "rte", "qnli"])
def test_glue_tasks_are_read_from_their_tsv_files(task: str, tmp_path: Path) -> None:
    layouts.glue(tmp_path / task, task)
    form = TextFormat(layouts.tokenizer(tmp_path / "words"), length=12)
    data = open_data(f"{task}:{tmp_path / task}", form, seed=3)
    check(data, (18, 2, 6))
    tokens, labels = data.source.fetch(data.test)
    assert isinstance(tokens, dict)
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (6, 12)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    if task == "sst2":  # [CLS] a fine film [SEP]
        assert tokens["input_ids"][0].tolist() == [2, 5, 6, 7, 3, *[0] * 7]
        assert tokens["attention_mask"][0].sum() == 5
    else:
        assert tokens["token_type_ids"].max() == 1
    form = TextFormat(form.tokenizer, ("input_ids", "labels"))
    taken = open_data(f"{task}:{tmp_path / task}", form, seed=3).source.fetch(data.test)[0]
    assert isinstance(taken, dict)
    assert list(taken) == ["input_ids"]
    with pytest.raises(CalibrationError, match="the model takes pixels"):
        open_data(f"{task}:{tmp_path / task}", TextFormat(form.tokenizer, ("pixels",)), seed=3)


@pytest.mark.parametrize("task", ["sst2", "rte"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("label", "gold", 1), "has no column label; the layout is"),
        (lambda text: text + "x\ty\tz\tmaybe\n", "line 22: the label is one of"),
        (lambda text: text.split("\n")[0], "holds no text"),
    ],
)
def test_a_wrong_tsv_file_is_named_with_its_layout(
    task: str, change: Callable[[str], str], said: str, tmp_path: Path
) -> None:
    form = TextFormat(layouts.tokenizer(tmp_path / "words"))
    layouts.glue(tmp_path, task)
    path = tmp_path / "train.tsv"
    path.write_text(change(path.read_text()))
    with pytest.raises(CalibrationError, match=said):
        open_data(f"{task}:{tmp_path}", form, seed=0)


def test_text_and_images_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="sst2 holds text, the model takes images"):
        open_data(f"sst2:{tmp_path}", COLOUR, seed=0)
    with pytest.raises(UnsupportedError, match="digits holds images, the model takes text"):
        open_data("digits", TextFormat(tmp_path), seed=0)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    layouts.glue(tmp_path, "rte")
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(CalibrationError, match="tokenizer"):
            open_data(f"rte:{tmp_path}", TextFormat(folder), seed=0)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cifar10", "The layout is ROOT/cifar-10-batches-py/"),
        ("flowers102", "The layout is ROOT/flowers-102/"),
        ("dtd", "The layout is ROOT/dtd/dtd/"),
        ("aircraft", "The layout is ROOT/fgvc-aircraft-2013b/data/"),
        ("tiny-imagenet", "the layout is ROOT/train/WNID/images"),
        ("pacs", "the domains art_painting, cartoon, photo, sketch"),
        ("vlcs", "the domains Caltech101, LabelMe, SUN09, VOC2007"),
        ("imagefolder", "the layout is ROOT/CLASS/IMAGE"),
    ],
)
@pytest.mark.parametrize("exists", [True, False], ids=["empty", "missing"])
def test_a_root_that_is_missing_or_empty_is_answered_with_the_layout(
    kind: str, said: str, exists: bool, tmp_path: Path
) -> None:
    root = tmp_path if exists else tmp_path / "none"
    with pytest.raises(CalibrationError, match=said) as caught:
        open_data(f"{kind}:{root}", COLOUR, seed=0)
    assert "download" not in str(caught.value)


def test_a_cifar_file_that_is_not_the_published_one_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.cifar10(tmp_path, monkeypatch)
    # Pickle opcodes that would make a file.
    trap = f"cos\nmkdir\n(V{tmp_path / 'trapped'}\ntR."
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_text(trap)
    with pytest.raises(CalibrationError, match=r"cifar10:.* cannot be read"):
        open_data(f"cifar10:{tmp_path}", COLOUR, seed=0)
    assert not (tmp_path / "trapped").exists()


def test_domains_with_other_classes_are_refused(tmp_path: Path) -> None:
    layouts.domains(tmp_path, PACS)
    layouts.image(tmp_path / "sketch" / "cat" / "0.jpg")
    with pytest.raises(CalibrationError, match="sketch has cat, dog, horse"):
        open_data(f"pacs:{tmp_path}", COLOUR, seed=0)


def test_an_unknown_class_in_the_annotations_is_named(tmp_path: Path) -> None:
    layouts.tiny_imagenet(tmp_path)
    path = tmp_path / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace("n01", "n09"))
    with pytest.raises(CalibrationError, match=r"val_annotations.txt, line 2: an image and one"):
        open_data(f"tiny-imagenet:{tmp_path}", COLOUR, seed=0)


def test_a_part_without_samples_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    layouts.by_class(tmp_path, ("cat", "dog"), 1)
    data = open_data(f"imagefolder:{tmp_path}", COLOUR, seed=0)
    with pytest.raises(CalibrationError, match="its validation part has no sample"):
        data.part("validation", 4)
