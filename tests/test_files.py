"""Files are put in place whole, and whoever may read new files may read them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxreduce.files import write_atomically


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_library_that_makes_private_files_leaves_one_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    path = tmp_path / "weights.safetensors"
    write_atomically(path, lambda temporary: save_file({"w": torch.ones(2)}, temporary))
    assert mode(path) == mode(tmp_path / "usual")


def test_a_file_that_cannot_be_finished_leaves_the_older_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("older")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_atomically(path, fail)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "older"
