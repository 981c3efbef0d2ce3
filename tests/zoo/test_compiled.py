"""One small variant of each family behind torch.compile, equal whatever changes, in float64.

A handful are of the default run, the rest are of the zoo's own.
`python -m benchmarks.zoo compile` looks at all architectures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxreduce
from benchmarks.zoo import compiled as compiling
from benchmarks.zoo.architectures import Input
from benchmarks.zoo.compiled import compile_and_compare
from benchmarks.zoo.examine import Record, Settings
from benchmarks.zoo.pinned import inputs, load, quick
from fxreduce.dynamo.folds import State
from tests.backend.compiling import SIZE, network

TABLE = load()
INPUTS = inputs(TABLE)
HANDFUL = ("timm:test_efficientnet", "timm:test_resnet", "timm:test_vit")
AS_IT_IS = Settings(parts=("fused",))


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    return () if name in HANDFUL else (pytest.mark.zoo,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in quick(TABLE)])
def test_a_family_is_equal_behind_torch_compile(name: str) -> None:
    record = compile_and_compare(name, AS_IT_IS, INPUTS[name])
    assert record["status"] == "equal", record


def compared(monkeypatch: pytest.MonkeyPatch, settings: Settings = AS_IT_IS) -> Record:
    """The record of a small model that is not of the zoo."""
    monkeypatch.setattr(compiling, "build", lambda *_: network())
    return compile_and_compare("small", settings, Input((2, SIZE, 8, 8)))


def test_a_model_is_compiled_as_it_is_and_without_half_of_its_rectifiers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = compared(monkeypatch, Settings())
    assert (record["status"], record["operators"], record["half"]) == ("equal", [9, 5], [9, 4])
    assert (record["fused_sites"], record["half_sites"]) == (2, 1)


def test_stale_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "is_current", lambda *_: True)
    record = compared(monkeypatch)
    assert record["status"] == "wrong"
    assert "after an update in place" in record["reason"]


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("not with this compiler")


def test_what_torch_itself_does_not_compile_is_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", fails)
    record = compared(monkeypatch)
    assert record["status"] == "excluded"
    assert record["reason"] == "fused: aot_eager alone: RuntimeError: not with this compiler"


def test_what_fails_with_fxreduce_alone_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxreduce, "backend", lambda _: fails)
    record = compared(monkeypatch)
    assert (record["status"], record["reason"]) == (
        "wrong", "fused: RuntimeError: not with this compiler",
    )  # fmt: skip
