"""Examine many architectures, each in a process of its own, and keep a line of JSON for each.

A process of its own bounds memory and time, and whatever a library does to the interpreter ends
with it. It is forked, so that the libraries are imported once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from benchmarks.zoo.architectures import Input
from benchmarks.zoo.examine import Record, Settings
from fxreduce.errors import first_line

Examination = Callable[[str, Settings, Input | None], Record]
_LOOK = 0.5  # seconds between two looks at the memory of the processes


@dataclass(frozen=True)
class Limits:
    """What one architecture may take: GiB of resident memory, and seconds of processor time."""

    memory: float = 8.0
    seconds: int = 600


def sweep(
    names: Iterable[str],
    results: Path,
    settings: Settings,
    *,
    examination: Examination,
    limits: Limits,
    jobs: int,
    known: dict[str, Input],
    told: Callable[[str, Record], None],
) -> None:
    """Examine the architectures that `results` has no line for, and append their lines."""
    torch.set_num_threads(1)
    done = read_results(results)
    waiting = [name for name in names if name not in done][::-1]
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[str, BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work,
                    args=(writer, examination, name, settings, known.get(name), limits),
                )
                process.start()
                writer.close()
                running[reader] = name, process, time.monotonic()
            for _, process, _ in running.values():
                if process.pid is not None and _resident(process.pid) > limits.memory * 2**30:
                    process.kill()
            for reader in wait(list(running), timeout=_LOOK):
                assert isinstance(reader, Connection)
                name, process, start = running.pop(reader)
                record = _received(reader, process, limits)
                record = {"name": name, **record, "wall": round(time.monotonic() - start, 1)}
                _append(results, record)
                told(name, record)
    finally:
        for _, process, _ in running.values():
            process.kill()
            process.join()


def read_results(path: Path) -> dict[str, Record]:
    """The last record of each architecture; a line that was cut off by a power cut is left out."""
    found: dict[str, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[record.pop("name")] = record
    return found


def _work(
    writer: Connection,
    examination: Examination,
    name: str,
    settings: Settings,
    known: Input | None,
    limits: Limits,
) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 5))
    try:
        record = examination(name, settings, known)
    except Exception as error:
        record = {
            "status": "failed",
            "reason": f"{type(error).__name__}: {first_line(error)[:400]}",
        }
    usage = resource.getrusage(resource.RUSAGE_SELF)
    record["seconds"] = round(usage.ru_utime + usage.ru_stime, 1)
    record["peak_gib"] = round(usage.ru_maxrss / 2**20, 2)
    writer.send(record)


def _resident(pid: int) -> int:
    """Bytes of resident memory; 0 for a process that has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def _received(reader: Connection, process: BaseProcess, limits: Limits) -> Record:
    """What the process sent, or what its end tells."""
    try:
        record: Record = reader.recv()
    except EOFError:
        process.join()
        allowed = f"{limits.seconds} s of processor time and {limits.memory:g} GiB are allowed"
        ended = -(process.exitcode or 0)
        record = {"status": "failed", "reason": f"ended by signal {ended}; {allowed}"}
    process.join()
    reader.close()
    return record


def _append(path: Path, record: Record) -> None:
    """One write for one line, so that lines are whole whatever happens."""
    line = (json.dumps(record) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line)
    finally:
        os.close(file)
