"""A process that runs schedules in children of its own, which start at once and can be killed.

Reads lines "FOLDER SECONDS" and runs the schedule with its checkpoint in FOLDER in a child, which
is killed after so many seconds; "FOLDER -" lets it end. Prints "killed", or what the schedule
found.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from fxreduce import schedules
from tests.schedules.scheduling import Task, mixed


def run(folder: str) -> str:
    task = Task(dtype=torch.float32)
    result = schedules.easier(
        mixed(torch.float32),
        task.loader,
        train=task.train,
        evaluate=task.evaluate,
        variant="code",
        drop=1.0,
        rounds=3,
        checkpoint=folder,
        progress=False,
    )
    weights = {name: tensor.tolist() for name, tensor in result.model.state_dict().items()}
    return repr((result.to_json(), weights))


def child(folder: str, found: Path) -> int:
    """Start a child that writes what it found to a file."""
    if pid := os.fork():
        return pid
    try:
        found.write_text(run(folder))
    except BaseException as error:
        found.write_text(f"error: {error!r}")
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        folder, seconds = line.split()
        found = Path(f"{folder}.found")
        pid = child(folder, found)
        if seconds != "-":
            time.sleep(float(seconds))
            os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            print("killed", flush=True)
        else:
            print(time.monotonic() - start, found.read_text(), flush=True)


if __name__ == "__main__":
    main()
