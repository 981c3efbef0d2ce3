"""How much of torchvision and timm is captured and merged, each architecture compared.

    make bench-zoo
    python -m benchmarks.coverage --largest 6000000 --json figures.json

The smallest variant of each family is captured, merged as it is and without half of its
rectifiers, and compared with the unmerged model; a wrong weight must be noticed. What is found is
compared with the pinned table, which knows every architecture; how many of them it holds in which
state stands beside it. `make zoo` examines all of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path

from benchmarks.document import Table
from benchmarks.run import Run, parser_of
from benchmarks.zoo.examine import Record, Settings, examine
from benchmarks.zoo.pinned import QUICK, differences, inputs, load, proved, quick
from benchmarks.zoo.sweep import Limits, read_results, sweep

BARS = ("Every architecture that was merged is equal, and none differs from the pinned table.",)
STATES = ("equal", "counted", "excluded")


@dataclass(frozen=True)
class Library:
    """A library's architectures: those examined now, and those that are pinned."""

    name: str
    found: dict[str, Record]
    pinned: dict[str, Record]

    @classmethod
    def of(cls, name: str, found: dict[str, Record], pinned: dict[str, Record]) -> Library:
        prefix = f"{name}:"
        found, pinned = (
            {key: each for key, each in records.items() if key.startswith(prefix)}
            for records in (found, pinned)
        )
        return cls(name, found, pinned)

    def differences(self) -> int:
        """How many values are other than pinned, of those that this run and the table both have."""
        both = {
            name: {key: each[key] for key in each if key in self.pinned.get(name, {})}
            for name, each in self.found.items()
        }
        known = {name: {key: self.pinned[name][key] for key in each} for name, each in both.items()}
        return len(list(differences(known, both)))

    def operators(self, place: int) -> int:
        """Affine operators before (0) or after (1) merging, of all that were examined."""
        return sum(each["operators"][place] for each in self.found.values() if "operators" in each)


def count(records: dict[str, Record], status: str) -> int:
    return sum(each["status"] == status for each in records.values())


NOW = (
    ("library", "{}", attrgetter("name")),
    ("examined", "{}", lambda each: len(each.found)),
    ("equal", "{}", lambda each: count(each.found, "equal")),
    ("other than pinned", "{}", Library.differences),
    ("rectifiers", "{:,}", lambda each: sum(r.get("sites", 0) for r in each.found.values())),
    ("operators", "{:,}", lambda each: each.operators(0)),
    ("merged", "{:,}", lambda each: each.operators(1)),
)
KNOWN = (
    ("library", "{}", attrgetter("name")),
    ("pinned", "{:,}", lambda each: len(each.pinned)),
    ("merged and equal", "{:,}", lambda each: count(each.pinned, "equal")),
    ("captured and counted", "{:,}", lambda each: count(each.pinned, "counted")),
    ("not captured", "{:,}", lambda each: count(each.pinned, "excluded")),
)
REASONS = (
    ("architecture", "{}", lambda each: each[0]),
    ("reason", "{}", lambda each: each[1]["reason"]),
)


def tables(found: dict[str, Record], pinned: dict[str, Record]) -> list[Table]:
    """What was examined, what is pinned, and why architectures are left out."""
    libraries = [Library.of(name, found, pinned) for name in ("torchvision", "timm")]
    excluded = [(n, each) for n, each in pinned.items() if each["status"] == "excluded"]
    wrong = [(n, each) for n, each in found.items() if each["status"] not in STATES]
    found_tables = [
        Table.of("Examined in this run", libraries, NOW),
        Table.of("Pinned", libraries, KNOWN),
    ]
    for title, rows in (("Not captured, and why", excluded), ("Wrong in this run", wrong)):
        if rows:
            found_tables.append(Table.of(title, rows, REASONS))
    return found_tables


def main(given: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--names", nargs="+", metavar="GLOB", help="of the quick list (all)")
    parser.add_argument(
        "--largest", type=int, default=QUICK, metavar="WEIGHTS", help=f"of a model ({QUICK:,})"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    arguments = parser.parse_args(given)
    run, pinned = Run.begin("zoo", __doc__, arguments), load()
    chosen = [
        name
        for name in proved(pinned, quick(pinned))
        if pinned[name]["weights"] <= arguments.largest
        and any(fnmatchcase(name, glob) for glob in arguments.names or ["*"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        sweep(
            chosen,
            path,
            Settings(),
            examination=examine,
            limits=Limits(),
            jobs=arguments.jobs,
            known=inputs(pinned),
            told=lambda name, each: print(f"{name}: {each['status']}", file=sys.stderr),
        )
        found = read_results(path)
    run.end(tables(found, pinned), BARS)
    return 0 if all(each["status"] == "equal" for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
