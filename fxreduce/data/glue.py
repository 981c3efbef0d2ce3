"""GLUE's sentence tasks from their TSV files, for a transformers tokenizer from a folder.

The published test files have no labels: `dev.tsv` is the test part here, and a tenth of `train.tsv`
the validation part.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxreduce.data.dataset import DataSet, seeded_split
from fxreduce.data.formats import TextFormat
from fxreduce.errors import CalibrationError, missing_extra


@dataclass(frozen=True)
class Task:
    """Columns of a task's files, and its labels in the order of their numbers."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]


_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "sst2": Task(("sentence",), ("0", "1")),
    "rte": Task(("sentence1", "sentence2"), _ENTAILMENT),
    "qnli": Task(("question", "sentence"), _ENTAILMENT),
}


@dataclass(frozen=True)
class TextSource:
    """Texts as token numbers.

    Attributes:
        tokens: What the tokenizer returned, `{name: [N, length]}`.
        labels: `[N]`.
    """

    tokens: dict[str, Tensor]
    labels: Tensor

    def fetch(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The tokens `{name: [N, length]}` at `indices` `[N]` and their labels `[N]`."""
        tokens = {name: values[indices] for name, values in self.tokens.items()}
        return tokens, self.labels[indices]

    def vary(self, indices: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:  # noqa: ARG002
        """As `fetch`: the published settings change no text."""
        return self.fetch(indices)


def open_glue(name: str, root: Path, form: TextFormat, *, seed: int) -> DataSet:
    """Read the task that the part of `name` before its colon says.

    Raises:
        CalibrationError: A file is missing or has other columns or labels.
        UnsupportedError: transformers is not installed.
    """
    task = TASKS[name.partition(":")[0]]
    tokenizer = _tokenizer(form.tokenizer)
    train, test = (_read(root / file, task) for file in ("train.tsv", "dev.tsv"))
    texts = [*train, *test]
    tokens = tokenizer(
        *([text[column] for text, _ in texts] for column in range(len(task.columns))),
        padding="max_length",
        truncation=True,
        max_length=form.length,
        return_tensors="pt",
    )
    names = tokens.keys() if form.names is None else form.names
    taken = {name: values for name, values in tokens.items() if name in names}
    if not taken:
        raise CalibrationError(
            f"the tokenizer makes {', '.join(tokens)}, the model takes {', '.join(names)}"
        )
    source = TextSource(taken, torch.tensor([label for _, label in texts]))
    validation, rest = seeded_split(len(train), (len(train) // 10,), seed=seed)
    tested = torch.arange(len(train), len(texts))
    return DataSet(name, len(task.labels), source, rest, validation, tested)


def _read(path: Path, task: Task) -> list[tuple[tuple[str, ...], int]]:
    layout = (
        "the layout is ROOT/train.tsv and ROOT/dev.tsv with a header and the columns "
        f"{', '.join(task.columns)} and label, apart by tabs, as GLUE publishes them"
    )
    if not path.is_file():
        raise CalibrationError(f"there is no file {path}; {layout}")
    texts = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = {*task.columns, "label"} - set(rows.fieldnames or ())
        if missing:
            raise CalibrationError(f"{path} has no column {', '.join(sorted(missing))}; {layout}")
        for number, row in enumerate(rows, 2):
            label = row["label"]
            if label not in task.labels or any(row[column] is None for column in task.columns):
                raise CalibrationError(
                    f"{path}, line {number}: the label is one of {', '.join(task.labels)}; seen: "
                    f"{label!r}. {layout}"
                )
            texts.append((tuple(row[column] for column in task.columns), task.labels.index(label)))
    if not texts:
        raise CalibrationError(f"{path} holds no text; {layout}")
    return texts


def _tokenizer(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "text data", "transformers") from None
    if not folder.is_dir():
        raise CalibrationError(
            f"there is no tokenizer folder {folder}; tokenizer.save_pretrained(FOLDER) writes one"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{folder} holds no tokenizer that transformers can read: {error}. "
            "tokenizer.save_pretrained(FOLDER) writes one"
        ) from error
