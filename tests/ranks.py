"""Two processes that find each other as torchrun tells them to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

_SECONDS = 300


def by_two_ranks(arguments: Sequence[str]) -> list[str]:
    """What two Python processes print, each told its rank by the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
    }
    started = [
        subprocess.Popen(
            (sys.executable, *arguments),
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=_SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    return ["".join(map(_without_gloo, out.splitlines(keepends=True))) for out, _ in ended]


def _without_gloo(line: str) -> str:
    """The line, or nothing where it is what gloo of some versions of torch prints on its own."""
    return "" if line.startswith("[Gloo]") else line
