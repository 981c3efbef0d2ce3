"""Test the core alone on one version of torch: python tests/on_torch.py 2.13

Makes an environment with that torch, networkx and fxreduce, and no extras, in a temporary folder;
prints what importing fxreduce adds to importing torch; runs the tests that need no extra; removes
the environment.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
ALLOWED = 1.5


def main(version: str) -> int:
    with tempfile.TemporaryDirectory(prefix="fxreduce-torch-") as folder:
        python = Path(folder) / "bin" / "python"
        venv.create(folder, with_pip=True)
        exact = version if version.count(".") > 1 else f"{version}.*"
        install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        subprocess.run([*install, f"torch=={exact}", str(ROOT)], check=True)
        subprocess.run([*install, "pytest", "hypothesis"], check=True)
        slower = import_ratio(python, folder)
        tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not zoo"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode or slower


def import_ratio(python: Path, folder: str) -> int:
    """Print both imports' times, median of rounds in turns; 1 where fxreduce takes too long."""
    seconds: dict[str, list[float]] = {"torch": [], "torch, fxreduce": []}
    for _ in range(ROUNDS):
        for names, taken in seconds.items():
            start = time.perf_counter()
            subprocess.run([python, "-c", f"import {names}"], cwd=folder, check=True)
            taken.append(time.perf_counter() - start)
    alone, both = (statistics.median(taken) for taken in seconds.values())
    print(
        f"import torch: {alone:.2f} s; import torch, fxreduce: {both:.2f} s; "
        f"{both / alone:.2f} times, {ALLOWED} are allowed",
        flush=True,
    )
    return int(both > ALLOWED * alone)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("which torch? make test-torch TORCH=2.13")
    sys.exit(main(sys.argv[1]))
