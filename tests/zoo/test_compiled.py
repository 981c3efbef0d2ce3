"""One small variant of each family behind torch.compile, equal whatever changes, in float64.

A handful are of the default run, with half of their rectifiers left out as well; the rest are of
the zoo's own. `python -m benchmarks.zoo compile` looks at all architectures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxreduce
from benchmarks.zoo import compiled as compiling
from benchmarks.zoo.compiled import compile_and_compare
from benchmarks.zoo.examine import Settings
from benchmarks.zoo.pinned import inputs, load, quick
from fxreduce.dynamo.folds import State

TABLE = load()
INPUTS = inputs(TABLE)
HANDFUL = ("timm:test_efficientnet", "timm:test_resnet", "timm:test_vit")
LEAST = HANDFUL[1]


@pytest.mark.parametrize("name", HANDFUL)
def test_a_handful_is_equal_and_merged_with_and_without_half_of_the_rectifiers(name: str) -> None:
    record = compile_and_compare(name, Settings(), INPUTS[name])
    assert record["status"] == "equal", record
    before, after = record["half"]
    assert after < before


@pytest.mark.zoo
@pytest.mark.parametrize("name", quick(TABLE))
def test_a_family_is_equal(name: str) -> None:
    record = compile_and_compare(name, Settings(parts=("fused",)), INPUTS[name])
    assert record["status"] == "equal", record


def test_stale_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "is_current", lambda *_: True)
    record = compile_and_compare(LEAST, Settings(parts=("fused",)), INPUTS[LEAST])
    assert record["status"] == "wrong"
    assert "after an update in place" in record["reason"]


def test_what_torch_itself_does_not_compile_is_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("not with this compiler")

    monkeypatch.setattr(torch, "compile", fails)
    record = compile_and_compare(LEAST, Settings(parts=("fused",)), INPUTS[LEAST])
    assert record["status"] == "excluded"
    assert record["reason"] == "fused: aot_eager alone: RuntimeError: not with this compiler"


def test_what_fails_with_fxreduce_alone_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("of ours")

    monkeypatch.setattr(compiling, "INNER", "eager")
    monkeypatch.setattr(fxreduce, "backend", lambda _: fails)
    record = compile_and_compare(LEAST, Settings(parts=("fused",)), INPUTS[LEAST])
    assert record["status"] == "wrong"
    assert "of ours" in record["reason"]
