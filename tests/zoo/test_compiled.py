"""Models of many families under torch.compile: equal outputs, and merged as `fuse` merges them."""

from __future__ import annotations

import pytest
import torch
from torch import _dynamo

import fxreduce
from tests.checks import assert_close
from tests.models import seeded
from tests.zoo.test_merges import QUICK, ZOO


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.zoo) for name in ZOO],
)
def test_a_compiled_model_computes_the_same_with_as_few_operators(name: str) -> None:
    entry = ZOO[name]
    model = seeded(entry.make).double()
    x = torch.randn(entry.shape, dtype=torch.float64)
    _dynamo.reset()
    compiled = torch.compile(model, backend=fxreduce.backend("aot_eager"), fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert_close(model(x), compiled(x))
        report = fxreduce.report(compiled)
    fused = fxreduce.report(fxreduce.fuse(model, example_inputs=x))
    assert report.operators_before == fused.operators_before
    assert report.operators_after == fused.operators_after
    _dynamo.reset()
