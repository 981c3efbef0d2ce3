"""What figures were measured on: the machine, the libraries, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "onnxruntime", "torch-pruning")
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def describe() -> dict[str, Any]:
    """The machine: `cpu`, `cores`, `memory_gib`, `system`, `python`, `threads`, `versions`.

    `cores` are those that this process may use, `threads` those that torch computes with;
    `versions` has None for what is not installed.
    """
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def commit() -> str | None:
    """The commit of the sources, with a plus where they are changed; None outside of git."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name.strip()}{'+' if changed else ''}"


def load() -> float:
    """How many processes wanted to run, on the mean of the last minute."""
    return round(os.getloadavg()[0], 2)


def processor_seconds() -> float:
    """What this process and those that it has waited for have used."""
    return sum(os.times()[:4])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return run.stdout
