"""The pinned table: what every architecture is known to give, and how a run differs from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import timm
import torch
import torchvision

from benchmarks.zoo.architectures import Input, family
from benchmarks.zoo.examine import Record
from fxreduce.files import write_atomically

QUICK = 62_000_000  # weights of the largest models of the quick list
TESTED = "timm:test_"
TABLE = Path(__file__).with_name("pinned.json")
# The rest of a record (errors, seconds) is of one machine.
PINNED = ("status", "reason", "input", "weights", "rung", "sites", "operators", "half")


def load(path: Path = TABLE) -> dict[str, Record]:
    """The pinned records by name."""
    if not path.exists():
        return {}
    models: dict[str, Record] = json.loads(path.read_text())["models"]
    return models


def inputs(table: Mapping[str, Record]) -> dict[str, Input]:
    """The inputs that were found before, so that nobody has to search for them again."""
    return {name: Input.of(each["input"]) for name, each in table.items() if "input" in each}


def pin(results: Mapping[str, Record], path: Path = TABLE) -> dict[str, Record]:
    """Write the table with the results in it, and return it; what was not run stays as it is."""
    found = {
        name: {key: record[key] for key in PINNED if key in record}
        for name, record in results.items()
    }
    table = dict(sorted((load(path) | found).items()))
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in table.items())
    libraries = {"torch": torch, "torchvision": torchvision, "timm": timm}
    versions = {name: library.__version__ for name, library in libraries.items()}
    text = f'{{\n "versions": {json.dumps(versions)},\n "models": {{\n{lines}\n }}\n}}\n'
    write_atomically(path, lambda temporary: _write(temporary, text))
    return table


def differences(table: Mapping[str, Record], results: Mapping[str, Record]) -> Iterator[str]:
    """A sentence for each pinned value that a result has otherwise, and for each name unknown."""
    for name, record in results.items():
        if name not in table:
            yield f"{name}: not pinned; seen {record['status']}"
            continue
        for key in PINNED:
            pinned, seen = table[name].get(key), record.get(key)
            if key != "reason" and json.dumps(pinned) != json.dumps(seen):
                yield f"{name}: {key} is {seen}, pinned {pinned}"


def summary(table: Mapping[str, Record]) -> str:
    """How many architectures have which status."""
    counts = Counter(str(record["status"]) for record in table.values())
    figures = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{len(table)} architectures: {figures or 'none'}"


def quick(table: Mapping[str, Record]) -> list[str]:
    """The smallest variant of each family, by the number of its weights, but no large ones.

    And the variants that timm has made small, for tests.
    """
    smallest: dict[str, str] = {}
    small = [n for n, each in table.items() if "sites" in each and each["weights"] <= QUICK]
    for name in sorted(small, key=lambda each: (table[each]["weights"], each)):
        smallest.setdefault(family(name), name)
    return sorted({*smallest.values(), *(name for name in small if name.startswith(TESTED))})


def proved(table: Mapping[str, Record], names: Iterable[str]) -> list[str]:
    """Those of the names that are known to be merged and equal."""
    return [name for name in names if table[name]["status"] == "equal"]


def _write(path: Path, text: str) -> None:
    path.write_text(text)
