"""Reading recipes: a model, a data set, how to train, and what each method is set to.

A recipe is a TOML file. `extends` names files below `files/parts/` whose tables it starts from;
later ones and the recipe itself overrule them key by key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fxreduce.errors import UnsupportedError
from fxreduce.training.settings import TrainingSettings

_FILES = Path(__file__).with_name("files")
_PARTS = _FILES / "parts"
METHODS = ("easier", "egp", "nepenthe", "tlc", "layer_folding")


@dataclass(frozen=True)
class Published:
    """Accuracies that a publication reports.

    Attributes:
        method: One of `METHODS`.
        source: The publication, and how it is known.
        removed: Rectifiers removed.
        accuracy: Top-1 accuracy in percent after so many.
    """

    method: str
    source: str
    removed: tuple[int, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: Of its file.
        title: For a person.
        model: Its name on the command line.
        data: Kind of its data set, without a root.
        training: The hyperparameters of every training, but those of `slopes` and `retraining`.
        methods: Settings of each method that was published on this, by its name.
        width: Of a small model: its channels over the published ones.
        size: Height and width of the images in pixels; None is what the model was made for.
        pretrained: Whether the published run starts from trained weights.
        notes: What the publication leaves open, and what stands here.
        published: Known results.
        slopes: The hyperparameters where rectifiers have slopes to train (Layer Folding); None
            where those of `training` do.
        retraining: The hyperparameters in the rounds; None where those of `training` do.
    """

    name: str
    title: str
    model: str
    data: str
    training: TrainingSettings
    methods: Mapping[str, Mapping[str, Any]]
    width: float = 1.0
    size: int | None = None
    pretrained: bool = False
    notes: str = ""
    published: tuple[Published, ...] = ()
    slopes: TrainingSettings | None = None
    retraining: TrainingSettings | None = None


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in _FILES.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """The recipe called `name`, or in the file of that path, which may extend the same parts.

    Raises:
        UnsupportedError: There is no such recipe, or its content is none.
    """
    path = Path(name) if name.endswith(".toml") else _FILES / f"{name}.toml"
    if not path.is_file():
        names = recipe_names()
        close = get_close_matches(name, names, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        raise UnsupportedError(f"there is no recipe {name!r}; {advice}")
    tables = _read(path)
    try:
        return _recipe(path.stem, tables)
    except (KeyError, TypeError) as error:
        raise UnsupportedError(
            f"recipe {name!r} must have a title, a model with a name and data with a kind, and "
            f"known keys beside them: {error}"
        ) from error


def _recipe(name: str, tables: Mapping[str, Any]) -> Recipe:
    methods = {method: dict(values) for method, values in tables.get("methods", {}).items()}
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise UnsupportedError(f"recipe {name!r}: there is no method {', '.join(unknown)}")
    training = tables.get("training", {})
    others: dict[str, Any] = {
        part: TrainingSettings.of({**training, **tables[part]})
        for part in ("slopes", "retraining")
        if part in tables
    }
    model = dict(tables["model"])
    return Recipe(
        name,
        tables["title"],
        model.pop("name"),
        tables["data"]["kind"],
        TrainingSettings.of(training),
        methods,
        notes=" ".join(tables.get("notes", "").split()),
        published=tuple(
            Published(each["method"], each["source"], tuple(each["removed"]), tuple(each["top1"]))
            for each in tables.get("published", ())
        ),
        **others,
        **model,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UnsupportedError(f"recipe {path} cannot be read: {error}") from error
    tables: dict[str, Any] = {}
    for part in content.pop("extends", ()):
        tables = _overruled(tables, _read(_PARTS / f"{part}.toml"))
    return _overruled(tables, content)


def _overruled(tables: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """The tables, each key overruled that `by` has, too; tables in tables the same way."""
    merged = dict(tables)
    for key, value in by.items():
        known = merged.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = _overruled(known, value)
        merged[key] = value
    return merged
