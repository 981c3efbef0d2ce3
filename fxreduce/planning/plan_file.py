"""What keeps a plan's file whole: hashes that name what was edited, and weights that belong to it.

The weights stand in a file of their own, which is named after its content. It is written first and
the plan, which names it, then replaced at once; so a reader finds the old pair or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxreduce.errors import PlanError
from fxreduce.files import write_atomically
from fxreduce.planning.fingerprint import hash_tensors
from fxreduce.planning.weights_file import SUFFIX, load_weights, save_weights

_HASHES, _SHOWN = "hashes", 12


def write_plan(path: Path, content: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a plan's content, and its weights where there are any.

    Raises:
        PlanError: safetensors is needed and not installed.
        OSError: a file cannot be written; the plan that was there is then as it was.
    """
    before = _named(path)
    content = content | {"torch": torch.__version__, "weights": None}
    if weights:
        beside = path.with_name(f"{path.stem}-{_hash(weights)}{SUFFIX}")
        content["weights"] = beside.name
        save_weights(beside, weights)
    content[_HASHES] = {key: _hash_of(value) for key, value in content.items()}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: _write(temporary, text))
    if before is not None and before != content["weights"]:
        path.with_name(before).unlink(missing_ok=True)


def require_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Raise PlanError, naming the first entry, where a plan is not as it was written."""
    hashes = content[_HASHES]
    for key in sorted({*content, *hashes} - {_HASHES}):
        if key not in content or hashes.get(key) != _hash_of(content[key]):
            raise PlanError(
                f"{path} was changed since it was written: its {key!r} is not what it was. Make it "
                "again with fxreduce.analyze(...).plan(...)"
            )


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The weights that a plan names.

    Raises:
        UnsupportedError: safetensors is not installed.
        PlanError: there is no such file, or it holds other weights.
    """
    beside = path.with_name(name)
    weights = load_weights(beside)
    if (seen := _hash(weights)) not in beside.stem:
        raise PlanError(
            f"{beside} is named after weights that it does not hold: theirs hash to {seen}. Make "
            "the plan again with fxreduce.analyze(...).plan(...)"
        )
    return weights


def _named(path: Path) -> str | None:
    """The weights that the plan of now names, in a file of our making."""
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ours = isinstance(name, str) and name.startswith(f"{path.stem}-") and name.endswith(SUFFIX)
    return name if ours and Path(name).name == name else None


def _hash(weights: Mapping[str, Tensor]) -> str:
    found = sha256()
    hash_tensors(found, weights)
    return found.hexdigest()[:_SHOWN]


def _hash_of(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_SHOWN]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
