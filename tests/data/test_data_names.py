"""Calibration images: the digits' split, image folders, and what is said of unusable ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fxreduce.data.dataset import Batches
from fxreduce.data.digits import Digits
from fxreduce.data.formats import ImageFormat
from fxreduce.data.names import load_data
from fxreduce.errors import CalibrationError, UnsupportedError

COLOUR = ImageFormat.of(3, (16, 16))
GREY = ImageFormat.of(1, (16, 16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four grey-level images each, of brightness 0, 30, 60, ..."""
    for index in range(8):
        path = tmp_path / ("cat" if index < 4 else "dog") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 24), (30 * index,) * 3).save(path)
    return tmp_path


def test_the_digits_split_is_disjoint_complete_and_decided_by_the_seed() -> None:
    first, again, other = (Digits.load(1, (8, 8), seed=seed) for seed in (3, 3, 4))
    parts = (first.train, first.calibration, first.test)
    assert [len(part) for part in parts] == [900, 500, 397]
    assert sorted(torch.cat(parts).tolist()) == list(range(1797))
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.test, other.test)


def test_the_digits_are_normalised_by_their_training_images_alone() -> None:
    digits = Digits.load(1, (8, 8), seed=0)
    images, _ = digits.fetch(digits.train)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-4)
    assert digits.fetch(digits.test)[0].mean().abs() > 1e-4


def test_the_digits_are_enlarged_and_repeated_over_the_channels() -> None:
    digits = Digits.load(3, (20, 24), seed=0)
    images, labels = digits.fetch(torch.tensor([0, 1, 2]))
    assert images.shape == (3, 3, 20, 24)
    assert torch.equal(images[:, 0], images[:, 2])
    assert labels.tolist() == [0, 1, 2]


def test_calibration_and_held_out_images_of_the_digits_were_not_trained_on() -> None:
    data = load_data("digits", GREY, samples=50, batch_size=16, seed=5)
    digits = Digits.load(1, (16, 16), seed=5)
    assert torch.equal(data.calibration.indices, digits.calibration[:50])
    assert torch.equal(data.held_out.indices, digits.test[:50])
    assert [len(labels) for _, labels in data.calibration] == [16, 16, 16, 2]
    assert len(data.calibration) == 4


def test_batches_can_be_iterated_again() -> None:
    batches = Batches(Digits.load(1, (8, 8), seed=0), torch.arange(5), 2)
    first, second = ([images for images, _ in batches] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_folder_is_split_into_disjoint_parts(folder: Path) -> None:
    data = load_data(f"imagefolder:{folder}", COLOUR, samples=100, batch_size=4, seed=0)
    calibration, held_out = data.calibration.indices.tolist(), data.held_out.indices.tolist()
    assert (len(calibration), len(held_out)) == (6, 2)
    assert sorted(calibration + held_out) == list(range(8))
    few = load_data(f"imagefolder:{folder}", COLOUR, samples=1, batch_size=4, seed=0)
    assert (len(few.calibration.indices), len(few.held_out.indices)) == (1, 1)


def test_folder_images_are_resized_cropped_and_normalised(folder: Path) -> None:
    data = load_data(f"imagefolder:{folder}", COLOUR, samples=8, batch_size=8, seed=0)
    images, labels = data.calibration.source.fetch(torch.tensor([2, 5]))
    assert images.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    expected = (60 / 255 - torch.tensor(COLOUR.mean)) / torch.tensor(COLOUR.std)
    torch.testing.assert_close(images[0], expected.view(3, 1, 1).expand(3, 16, 16))


def test_folder_images_become_grey_for_a_model_with_one_channel(folder: Path) -> None:
    data = load_data(f"imagefolder:{folder}", GREY, samples=8, batch_size=8, seed=0)
    assert next(iter(data.calibration))[0].shape == (6, 1, 16, 16)


@pytest.mark.parametrize("name", ["digit", "imagefolder", "imagefolder:", "cifar1:/d", "sst2"])
def test_an_unknown_data_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"named digits, .*cifar10:ROOT, .*; got"):
        load_data(name, COLOUR, samples=1, batch_size=1, seed=0)


def test_a_missing_folder_is_answered_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"there is no folder .*; the layout is ROOT/CLASS"):
        load_data(f"imagefolder:{tmp_path}/none", COLOUR, samples=1, batch_size=1, seed=0)


@pytest.mark.parametrize("inside", ["loose.png", "empty/readme.txt"])
def test_another_layout_is_answered_with_the_right_one(tmp_path: Path, inside: str) -> None:
    path = tmp_path / inside
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(CalibrationError, match="the layout is ROOT/CLASS/IMAGE"):
        load_data(f"imagefolder:{tmp_path}", COLOUR, samples=1, batch_size=1, seed=0)


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(CalibrationError, match="holds one image; at least two are needed"):
        load_data(f"imagefolder:{tmp_path}", COLOUR, samples=1, batch_size=1, seed=0)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 64])
def test_a_corrupt_image_is_named(folder: Path, content: bytes) -> None:
    (folder / "cat" / "0.png").write_bytes(content)
    data = load_data(f"imagefolder:{folder}", COLOUR, samples=8, batch_size=8, seed=0)
    with pytest.raises(CalibrationError, match=r"cat/0\.png is not a readable image"):
        data.calibration.source.fetch(torch.arange(8))


def test_a_truncated_image_is_named(folder: Path) -> None:
    path = folder / "cat" / "0.png"
    noise = torch.randint(255, (24, 40, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    data = load_data(f"imagefolder:{folder}", COLOUR, samples=8, batch_size=8, seed=0)
    with pytest.raises(CalibrationError, match=r"cat/0\.png is not a readable image"):
        data.calibration.source.fetch(torch.arange(8))


def test_a_model_with_five_channels_cannot_read_image_files(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="1 or 3 channels; the model takes 5"):
        load_data(
            f"imagefolder:{folder}", ImageFormat.of(5, (8, 8)), samples=1, batch_size=1, seed=0
        )
