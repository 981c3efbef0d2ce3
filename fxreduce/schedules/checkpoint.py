"""Keeping a schedule on disk after every round, so that a killed one goes on where it was.

A folder holds `schedule.json` and the safetensors files that it names. Files are written under new
names first, then the JSON takes the place of the old one in one step, then files that it no longer
names go. So whenever the process is killed, the JSON names complete files. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from fxreduce.calibration.ranks import first_rank, is_first
from fxreduce.calibration.statistics import ChannelStatistics
from fxreduce.errors import ScheduleError, first_line
from fxreduce.extras import required
from fxreduce.files import write_atomically
from fxreduce.schedules.network import Removal, Snapshot
from fxreduce.schedules.random_state import random_state, set_random_state
from fxreduce.schedules.rounds import Round

SCHEMA = 1
INDEX = "schedule.json"
_SUFFIX = ".safetensors"
_STATISTICS, _RANDOM = "statistics:", "random:"
# What a schedule writes; temporary files, which a killed one leaves, begin with a dot.
_OWN = re.compile(
    r"(initial|dense|best|last|round)-\d{4}\.safetensors"
    r"|\.((initial|dense|best|last|round)-\d{4}-[0-9a-f]{32}\.safetensors|schedule-[0-9a-f]{32}\.json)"
)


@dataclass
class Progress:
    """How far a schedule has come.

    Attributes:
        rounds: those that are complete.
        snapshots: the network at points that are still needed: "initial", before any training;
            "dense"; "best", the last round that is allowed; "last".
        watched: statistics of the last training epoch, by site.
        stuck: why sites cannot be removed, by name.
        stopped: why the schedule has ended; None while it has not.
    """

    rounds: list[Round] = field(default_factory=list)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    watched: dict[str, ChannelStatistics] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


class Checkpoint:
    """The folder of one schedule.

    Args:
        folder: made if it is not there; None keeps nothing.
        recipe: all settings that decide what the schedule does, as JSON has them.
        architecture: of the model, see `fxreduce.planning.fingerprint`.
    """

    def __init__(
        self,
        folder: str | PathLike[str] | None,
        recipe: Mapping[str, Any],
        architecture: tuple[str, ...],
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = {
            "recipe": json.loads(json.dumps(recipe)),
            "architecture": list(architecture),
        }
        self._files: dict[str, tuple[Snapshot, str]] = {}

    def save(self, progress: Progress) -> None:
        """Write how far the schedule has come, by one process of those that work together.

        Raises:
            ScheduleError: a file cannot be written; the checkpoint before is as it was.
        """
        if self._folder is None:
            return
        problem = None
        if is_first():
            try:
                self._write(self._folder, progress)
            except OSError as error:
                problem = (
                    f"the checkpoint cannot be written to {self._folder}: {error}. What was there "
                    "is as it was; make room or give another folder, and run again to go on"
                )
        if (problem := first_rank(problem)) is not None:
            raise ScheduleError(problem)

    def load(self) -> Progress | None:
        """How far the schedule came; None where there is no checkpoint yet.

        Sets the random generators to what they were.

        Raises:
            ScheduleError: the checkpoint is of another schedule or model, or damaged.
        """
        if self._folder is None:
            return None
        path = self._folder / INDEX
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ScheduleError(f"the checkpoint {path} cannot be read: {error}") from error
        try:
            content = json.loads(text)
            schema = content["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        if schema != SCHEMA:
            raise ScheduleError(
                f"{path} is no checkpoint of this version: it has schema {schema!r}, this version "
                f"{SCHEMA}. Give another folder to begin anew"
            )
        _require_same(self._identity, content, path)
        try:
            return self._read(self._folder, content)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error) from error

    def _write(self, folder: Path, progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(progress.rounds)
        files: dict[str, tuple[Snapshot, str]] = {}
        for role, snapshot in progress.snapshots.items():
            written = (*self._files.values(), *files.values())
            name = next((name for known, name in written if known is snapshot), None)
            if name is None:
                name = f"{role}-{number:04d}{_SUFFIX}"
                _write_tensors(folder / name, dict(snapshot.tensors))
            files[role] = (snapshot, name)
        tensors, random_words = random_state()
        extra = f"round-{number:04d}{_SUFFIX}"
        _write_tensors(folder / extra, _flat(progress.watched, tensors))
        content = self._identity | {
            "schema": SCHEMA,
            "rounds": [each.to_dict() for each in progress.rounds],
            "stopped": progress.stopped,
            "stuck": progress.stuck,
            "random": random_words,
            "watched": list(progress.watched),
            "extra": extra,
            "snapshots": {
                role: {"file": name, **asdict(Snapshot(*_facts(snapshot)))}
                for role, (snapshot, name) in files.items()
            },
        }
        text = json.dumps(content, indent=1, allow_nan=False)
        _write_file(folder / INDEX, text.encode())
        self._files = files
        kept = {extra, *(name for _, name in files.values())}
        for path in folder.iterdir():
            if _OWN.fullmatch(path.name) and path.name not in kept:
                path.unlink(missing_ok=True)

    def _read(self, folder: Path, content: Mapping[str, Any]) -> Progress:
        snapshots: dict[str, Snapshot] = {}
        loaded: dict[str, Snapshot] = {}
        for role, facts in content["snapshots"].items():
            name = facts["file"]
            if name not in loaded:
                loaded[name] = Snapshot(
                    tuple(Removal(**each) for each in facts["removals"]),
                    tuple(facts["masked"]),
                    tuple(facts["biased"]),
                    tuple(facts["channels_last"]),
                    _read_tensors(folder / name),
                )
            snapshots[role] = loaded[name]
            self._files[role] = (loaded[name], name)
        extra = _read_tensors(folder / content["extra"])
        watched = {
            site: ChannelStatistics.from_tensors(_under(extra, f"{_STATISTICS}{site}:"))
            for site in content["watched"]
        }
        set_random_state(_under(extra, _RANDOM), content["random"])
        return Progress(
            [Round.from_dict(each) for each in content["rounds"]],
            snapshots,
            watched,
            dict(content["stuck"]),
            content["stopped"],
        )


def _facts(snapshot: Snapshot) -> tuple[Any, ...]:
    """A snapshot's fields but its tensors."""
    return snapshot.removals, snapshot.masked, snapshot.biased, snapshot.channels_last


def _flat(
    watched: Mapping[str, ChannelStatistics], states: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {
        **{
            f"{_STATISTICS}{site}:{name}": tensor
            for site, each in watched.items()
            for name, tensor in each.tensors().items()
        },
        **{f"{_RANDOM}{name}": tensor for name, tensor in states.items()},
    }


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    _write_file(path, _library().save(content))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    library = _library()
    try:
        # Read whole, not mapped into memory: the file goes when a later round is written.
        tensors: dict[str, Tensor] = library.load(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # safetensors has an error of its own
        raise ValueError(f"{path.name}: {first_line(error)}") from error
    return tensors


def _write_file(path: Path, content: bytes) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or after a power cut the name could precede the content

    write_atomically(path, write)


def _library() -> Any:
    return required("safetensors.torch", "a checkpoint", "export")


def _damaged(path: Path, error: Exception) -> ScheduleError:
    return ScheduleError(
        f"the checkpoint {path} is damaged: {first_line(error)}. Give another folder to begin anew"
    )


def _require_same(mine: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    """Raise ScheduleError, naming the first difference, where a checkpoint is of something else."""
    for part, told in (("recipe", "another schedule"), ("architecture", "another model")):
        difference = _difference(mine[part], theirs.get(part), "" if part == "recipe" else part)
        if difference is not None:
            where, own, other = difference
            raise ScheduleError(
                f"the checkpoint {path} is of {told}: {where} was {other!r} there and is "
                f"{own!r} now. Run with what it was begun with, or give another folder"
            )


def _difference(mine: Any, theirs: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in {**mine, **theirs}:
            inner = f"{where}.{key}" if where else str(key)
            if found := _difference(mine.get(key), theirs.get(key), inner):
                return found
        return None
    if isinstance(mine, list) and isinstance(theirs, list):
        for place in range(max(len(mine), len(theirs))):
            a, b = (each[place] if place < len(each) else None for each in (mine, theirs))
            if found := _difference(a, b, f"{where}[{place}]"):
                return found
        return None
    return None if mine == theirs else (where, mine, theirs)


def describe(value: Any) -> Any:
    """Settings as JSON has them; of functions and other objects only what kind they are."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [describe(each) for each in value]
    fields: Callable[[], Mapping[str, Any]] | None = getattr(value, "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):
        return {"kind": type(value).__name__} | {
            name: describe(getattr(value, name)) for name in value.__dataclass_fields__
        }
    return type(value).__name__
