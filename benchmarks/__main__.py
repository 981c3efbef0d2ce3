"""Run the benchmarks, each part in a process of its own, one after another.

    python -m benchmarks                     all parts: less than forty minutes on two cores
    python -m benchmarks --short             all parts, small: less than five
    python -m benchmarks fusion scale        some of them
    python -m benchmarks frontier --full     one at its full size

Text, JSON and charts go to `benchmarks/results`, from where the documentation takes them; those of
a short run to `build/bench-short`. A part that fails is named at the end, and the others still run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import RESULTS, ROOT
from benchmarks.parts import PARTS, Part

SHORT = ROOT / "build" / "bench-short"


def run(parts: Sequence[Part], size: str, results: Path) -> dict[str, int]:
    """Run the parts; returns the exit codes of those that failed."""
    failed = {}
    for part in parts:
        start = time.monotonic()
        print(f"== {part.name}, {size}", flush=True)
        command = [sys.executable, "-m", part.module, *part.arguments(size)]
        command += ["--results", str(results.resolve()), "--label", size]
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed[part.name] = code
        taken = time.monotonic() - start
        print(f"== {part.name}: {f'FAILED, {code}' if code else 'done'}, {taken:.0f} s\n")
    return failed


def main(given: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    named = {part.name: part for part in parts}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(named)} (all)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--short", dest="size", action="store_const", const="short")
    sizes.add_argument("--full", dest="size", action="store_const", const="full")
    parser.set_defaults(size="whole")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="of the files")
    arguments = parser.parse_args(given)
    if unknown := [name for name in arguments.parts if name not in named]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(named)}")
    chosen = [part for part in parts if not arguments.parts or part.name in arguments.parts]
    results = arguments.results or (SHORT if arguments.size == "short" else RESULTS)
    start = time.monotonic()
    failed = run(chosen, arguments.size, results)
    minutes = (time.monotonic() - start) / 60
    print(f"{len(chosen) - len(failed)} of {len(chosen)} parts in {minutes:.1f} minutes: {results}")
    for name, code in failed.items():
        print(f"FAILED: {name}, exit code {code}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
