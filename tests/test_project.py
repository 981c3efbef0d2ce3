"""What the project says of itself is the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import fxreduce

ROOT = Path(fxreduce.__file__).parents[1]


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fxreduce.__version__"}
    assert f"\nversion: {fxreduce.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {fxreduce.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_everything_that_extras_promise_is_in_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (everything,) = extras.pop("all")
    named = set(re.findall(r"[\w-]+", everything.partition("[")[2]))
    assert named == set(extras)


def test_the_map_names_every_folder_of_the_package() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    folders = {path.parent.name for path in (ROOT / "fxreduce").glob("*/__init__.py")}
    named = set(re.findall(r"^\| `(?:fxreduce/)?(\w+)/`", page, re.MULTILINE))
    assert folders <= named


def test_every_make_target_is_described() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    page = (ROOT / "CONTRIBUTING.md").read_text().split("## The targets")[1].split("\n## ")[0]
    described = set(re.findall(r"^\| `([a-z-]+)", page, re.MULTILINE))
    assert described == {*targets, "check"} - {"help", "demo"}
