"""A small RoBERTa, reduced, comes back from every format: tokens, masks, outputs of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import fxreduce
from tests.checks import assert_close
from tests.models import seeded
from tests.text_models import Batch, roberta, tokens

SIZES = (1, 3, 5)


@pytest.fixture(scope="module")
def plan() -> fxreduce.Plan:
    loader = [tokens(seed=seed) for seed in range(4)]
    return fxreduce.analyze(seeded(roberta), loader).plan(budget=1)


@pytest.fixture(scope="module")
def reduced(plan: fxreduce.Plan) -> GraphModule:
    return plan.apply(seeded(roberta))


def logits(module: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(**batch)["logits"]
    return found


def assert_same_weights(one: GraphModule, other: GraphModule) -> None:
    assert set(one.state_dict()) == set(other.state_dict())
    for name, tensor in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], tensor), name


def test_the_reduced_model_has_lost_a_rectifier_and_an_operator(reduced: GraphModule) -> None:
    report = fxreduce.report(reduced)
    assert len(report.removed) == 1
    assert report.operators_after < report.operators_before


def test_its_file_gives_the_same_bits_into_any_weights_of_its_architecture(
    reduced: GraphModule, tmp_path: Path
) -> None:
    path = fxreduce.save(reduced, tmp_path / "roberta.safetensors")
    loaded = fxreduce.load(path, seeded(roberta, seed=5))
    assert_same_weights(loaded, reduced)
    for size in SIZES:
        batch = tokens(size, seed=9)
        assert type(loaded(**batch)) is type(reduced(**batch))
        assert_close(logits(reduced, batch), logits(loaded, batch), 1e-5)


def test_outputs_of_its_own_need_the_architecture(reduced: GraphModule, tmp_path: Path) -> None:
    path = fxreduce.save(reduced, tmp_path / "roberta.safetensors")
    with pytest.raises(fxreduce.UnsupportedError, match=r"pass the model that it was made from"):
        fxreduce.load(path)


def test_its_program_computes_the_same_for_any_batch_size(
    reduced: GraphModule, tmp_path: Path
) -> None:
    path = fxreduce.save(reduced, tmp_path / "roberta.pt2", example_inputs=tokens())
    program = torch.export.load(path).module()
    for size in SIZES:
        batch = tokens(size, seed=9)
        assert_close(logits(reduced, batch), logits(program, batch), 1e-5)


def test_onnxruntime_computes_the_same_for_any_batch_size(
    reduced: GraphModule, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is an extra")
    path = fxreduce.save(reduced, tmp_path / "roberta.onnx", example_inputs=tokens())
    session = onnxruntime.InferenceSession(path)
    for size in SIZES:
        batch = tokens(size, seed=9)
        (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        assert_close(logits(reduced, batch), torch.from_numpy(found), 1e-5)


def test_its_plan_gives_the_identical_model_for_the_same_weights(
    plan: fxreduce.Plan, reduced: GraphModule, tmp_path: Path
) -> None:
    plan.save(tmp_path / "plan.json")
    again = fxreduce.Plan.load(tmp_path / "plan.json").apply(seeded(roberta))
    assert_same_weights(again, reduced)
    assert again.code == reduced.code
