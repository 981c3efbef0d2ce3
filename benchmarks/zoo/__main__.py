"""Run the zoo, compare a run with the pinned table, pin a run.

python -m benchmarks.zoo run [GLOB ...]       examine; a second run goes on where one stopped
python -m benchmarks.zoo compare              exit 1 where the results differ from the table
python -m benchmarks.zoo pin                  take the results into the table
python -m benchmarks.zoo compile [GLOB ...]   call them behind torch.compile; goes on likewise
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from benchmarks.zoo.architectures import SMALL, names
from benchmarks.zoo.compiled import compile_and_compare
from benchmarks.zoo.examine import LARGEST, Record, Settings, examine
from benchmarks.zoo.pinned import differences, inputs, load, pin, quick, summary
from benchmarks.zoo.sweep import Examination, Limits, read_results, sweep

RESULTS = Path(__file__).with_name("results.jsonl")
COMPILED = Path(__file__).with_name("results-compiled.jsonl")


def main() -> int:
    arguments = _parser().parse_args()
    table = load()
    compiles = arguments.command == "compile"
    arguments.results = arguments.results or (COMPILED if compiles else RESULTS)
    if compiles or arguments.command == "run":
        return _run(arguments, table, compile_and_compare if compiles else examine)
    results = read_results(arguments.results)
    if arguments.command == "pin":
        print(summary(pin(results)))
        return 0
    found = list(differences(table, results))
    print(*found, sep="\n", end="\n" if found else "")
    print(summary(results), f"{len(found)} differences from the table", sep="; ")
    wrong = [name for name, record in results.items() if record["status"] in ("wrong", "failed")]
    return 1 if found or wrong else 0


def _run(arguments: argparse.Namespace, table: dict[str, Record], examination: Examination) -> int:
    chosen = sorted({*quick(table), *SMALL}) if arguments.quick else names()
    if arguments.globs:
        chosen = [n for n in chosen if any(fnmatchcase(n, glob) for glob in arguments.globs)]
    # Small ones first: whoever stops a run early has seen the most architectures by then.
    chosen.sort(key=lambda name: table.get(name, {}).get("weights", 0))
    places = {name: place for place, name in enumerate(chosen, 1)}
    sweep(
        chosen,
        arguments.results,
        Settings(arguments.largest, arguments.float64, tuple(arguments.parts)),
        examination=examination,
        limits=Limits(arguments.memory, arguments.seconds),
        jobs=arguments.jobs,
        known=inputs(table),
        told=partial(_tell, places),
    )
    results = read_results(arguments.results)
    print(summary(results))
    return 1 if any(each["status"] in ("wrong", "failed") for each in results.values()) else 0


def _tell(places: dict[str, int], name: str, record: Record) -> None:
    reason = f": {record['reason']}" if "reason" in record else ""
    operators = " -> ".join(map(str, record.get("operators", ())))
    print(
        f"{places[name]}/{len(places)} {name} {record['status']}{reason} {operators} "
        f"({record['wall']} s)",
        file=sys.stderr,
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=("run", "compare", "pin", "compile"))
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="names to run, as 'timm:vit_*'")
    parser.add_argument("--results", type=Path, metavar="FILE", help="where the records are kept")
    parser.add_argument("--quick", action="store_true", help="one small variant of each family")
    parser.add_argument("--float64", action="store_true", help="compare in float64, to 1e-9")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=Settings.parts,
        default=Settings.parts,
        help="merge the model as it is, and without half of its rectifiers (default: both)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument(
        "--largest",
        type=int,
        default=LARGEST,
        metavar="WEIGHTS",
        help="above it a model is captured and counted on the meta device (default %(default)s)",
    )
    parser.add_argument("--memory", type=float, default=Limits.memory, help="GiB a process")
    parser.add_argument("--seconds", type=int, default=Limits.seconds, help="of a processor")
    return parser


if __name__ == "__main__":
    sys.exit(main())
