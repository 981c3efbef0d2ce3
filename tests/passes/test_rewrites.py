"""Every kind of rewrite is made wherever it is exact, and is exact in every dtype."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from checks import RELATIVE, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites import REWRITES
from rounding import bound
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.graph.compare import paired
from fxreduce.graph.shapes import call, propagate_shapes
from fxreduce.graph.trace import trace

COARSE = (torch.float32, torch.bfloat16, torch.float16)
# 30 of each in the usual run, and 2,000 with `make fuzz`.
EXAMPLES = settings(max_examples=max(settings().max_examples - 1000, 30))


def test_there_are_at_least_twenty_kinds() -> None:
    assert len(REWRITES) >= 20


@pytest.mark.parametrize("kind", REWRITES)
@EXAMPLES
@given(data=st.data())
def test_it_is_made_and_keeps_the_outputs(kind: str, data: st.DataObject) -> None:
    rewrite = REWRITES[kind]
    model, x = data.draw(rewrite.cases)
    result = rewrite.by.run(traced(model, x))
    assert result.modified, result.refusals
    with torch.no_grad():
        assert_close(model(x.clone()), result.graph_module(x.clone()))


@pytest.mark.parametrize("kind", REWRITES)
@EXAMPLES
@given(data=st.data())
def test_in_coarser_dtypes_only_the_rounding_of_merged_weights_is_seen(
    kind: str, data: st.DataObject
) -> None:
    rewrite = REWRITES[kind]
    model, x = data.draw(rewrite.cases)
    dtype = data.draw(st.sampled_from(COARSE))
    graph_module, given = traced(model, x).to(dtype), x.to(dtype).double()
    result = rewrite.by.run(graph_module)
    assert result.modified, result.refusals
    allowed = bound(result, dtype, given)
    with torch.no_grad():
        expected, seen = (
            deepcopy(each).double()(given.clone()) for each in (graph_module, result.graph_module)
        )
    assert_within(expected, seen, allowed)


def traced(model: nn.Module, x: Tensor) -> GraphModule:
    """The model's graph, which knows its shapes, in half of the time that capturing takes."""
    graph_module = trace(model, None)
    propagate_shapes(graph_module, partial(call, inputs=x))
    return graph_module


def assert_within(expected: Any, seen: Any, allowed: Any) -> None:
    """Each value is off by no more than the bound in its place, and the order of summation."""
    for (a, b), (_, most) in zip(paired(expected, seen), paired(expected, allowed), strict=True):
        slack = RELATIVE * (1 + a.abs().max())
        assert bool(((a - b).abs() <= most + slack).all()), ((a - b).abs() - most).max()
