"""Destinations are refused before the long work, and files are read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxreduce.cli.errors import UsageError
from fxreduce.cli.saving import check_destination
from fxreduce.errors import UnsupportedError


@pytest.mark.parametrize("name", ["model", "model.pth", "model.PT2"])
def test_an_unknown_suffix_is_answered_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UnsupportedError, match=r"\.json: the plan; .*\.pt2: a torch\.export program .*\.onnx"
    ):
        check_destination(tmp_path / name)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere; make it first"):
        check_destination(tmp_path / "nowhere" / "model.pt2")


def test_a_folder_is_no_destination(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(UsageError, match="is a folder; name a file"):
        check_destination(tmp_path / "model.pt2")


def test_a_folder_that_cannot_be_written_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UsageError, match=r"cannot write to \.: .*Permission denied"):
        check_destination(Path("model.pt2"))


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_destination(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())
