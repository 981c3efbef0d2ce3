"""One safetensors file that holds a reduced model: weights, graph and report; nothing is unpickled.

The graph is JSON in the file's own metadata, so that one file is replaced at once and can never be
half of another. A hash over all of it tells a file that was edited.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from fxreduce.errors import PlanError, first_line
from fxreduce.extras import required
from fxreduce.files import write_atomically
from fxreduce.planning.fingerprint import hash_tensors

SCHEMA = 1
_KEY, _HASH = "fxreduce", "sha256"


@dataclass(frozen=True)
class ModelFile:
    """The content of a file.

    Attributes:
        torch: the version that wrote it.
        class_name: of the reduced model.
        architecture: the fingerprint of the model that it was made from.
        graph: see `fxreduce.saving.graphs`.
        modules: recipes by path, see `fxreduce.saving.modules`; None for a module that the user's
            model has.
        described: the tensors by all of their names, see `fxreduce.saving.tensors`.
        report: what was done, see `fxreduce.report`.
        inputs: shapes and dtypes of a batch, where one was seen.
        tensors: each once.
    """

    torch: str
    class_name: str
    architecture: list[str]
    graph: dict[str, Any]
    modules: dict[str, Any]
    described: dict[str, Any]
    report: dict[str, Any]
    inputs: dict[str, Any] | None
    tensors: Mapping[str, Tensor]

    @property
    def needs_model(self) -> tuple[str, ...]:
        """The modules that only the user's model has."""
        return tuple(path for path, recipe in self.modules.items() if recipe is None)

    def write(self, path: Path, check: Callable[[ModelFile], None]) -> None:
        """Write the file, and let `check` see what is read back before it replaces an older one.

        Raises:
            UnsupportedError: safetensors is not installed.
            OSError: the file system refused; an older file is then as it was.
        """
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()
        }
        content = {n: v for n, v in vars(self).items() if n != "tensors"} | {"schema": SCHEMA}
        text = json.dumps(content, allow_nan=False, sort_keys=True)
        metadata = {_KEY: text, _HASH: _hash(text, tensors)}
        save_file = _library("safetensors.torch").save_file

        def write(temporary: Path) -> None:
            save_file(tensors, temporary, metadata)
            check(ModelFile.read(temporary))

        write_atomically(path, write)

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Read the file, complete and as it was written.

        Raises:
            UnsupportedError: safetensors is not installed.
            PlanError: there is no such file, or it is not one that `write` wrote.
        """
        safe_open = _library("safetensors").safe_open
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors has an error of its own
            raise PlanError(f"no reduced model can be read from {path}: {first_line(error)}") from (
                error
            )
        if _KEY not in metadata:
            raise PlanError(
                f"{path} holds weights, but no reduced model; fxreduce.save(reduced, path) writes "
                "one"
            )
        text = metadata[_KEY]
        if metadata.get(_HASH) != (seen := _hash(text, tensors)):
            raise PlanError(
                f"{path} was changed since it was written: its content has the hash {seen[:12]}, "
                f"noted is {str(metadata.get(_HASH))[:12]}. Save the reduced model again"
            )
        content = json.loads(text)
        if (schema := content.pop("schema", None)) != SCHEMA:
            raise PlanError(
                f"{path} is of another version of fxreduce: it has schema {schema!r}, read is "
                f"{SCHEMA}. Save the reduced model again"
            )
        return cls(**content, tensors=tensors)


def _hash(text: str, tensors: Mapping[str, Tensor]) -> str:
    found = sha256(text.encode())
    hash_tensors(found, tensors)
    return found.hexdigest()


def _library(name: str) -> Any:
    return required(name, "a reduced model's file", "export")
