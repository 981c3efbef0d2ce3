"""Padded convolutions behind padded ones, which merge where their sizes are guarded."""

from __future__ import annotations

import pytest
import torch

import fxreduce
from tests.backend.compiling import Inner, photo, stem
from tests.checks import assert_close

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("freeze", [False, True])
def test_they_are_merged_inside_as_fuse_merges_them(freeze: bool) -> None:
    model, x, inner = stem(), photo(), Inner("aot_eager")
    compiled = torch.compile(model, backend=fxreduce.backend(inner, freeze=freeze))
    assert_close(model(x), compiled(x))
    report = fxreduce.report(compiled)
    fused = fxreduce.report(fxreduce.fuse(model, example_inputs=x))
    assert (report.operators_after, report.macs_after) == (1, fused.macs_after)


def test_updates_and_other_batches_are_right_without_compiling_again(inner: Inner) -> None:
    model, other = stem(), stem()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    x = photo()
    torch._dynamo.mark_dynamic(x, 0)
    assert_close(model(x), compiled(x))
    model[0].weight.mul_(1.5)
    model[1].load_state_dict(other[1].state_dict())
    for batch in (2, 3, 7):
        x = photo(batch)
        assert_close(model(x), compiled(x))
    assert fxreduce.report(compiled).operators_after == 1
    assert inner.compilations == 1


def test_other_sizes_are_right_and_apart_where_they_are_dynamic(inner: Inner) -> None:
    model = stem()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    for high in (40, 41, 44, 3):
        x = photo(high=high)
        assert_close(model(x), compiled(x))
    first, *others = fxreduce.report(compiled).graphs
    assert first.operators_after == 1
    assert {each.operators_after for each in others} == {2}
    assert all("sizes are dynamic" in str(each) for each in others)


def test_disabled_they_stay_apart_without_a_word() -> None:
    model, x = stem(), photo()
    used = fxreduce.backend(Inner(), disable=["fuse_padded"])
    for dynamic in (False, True):
        compiled = torch.compile(model, backend=used, dynamic=dynamic)
        assert_close(model(x), compiled(x))
        assert "dynamic" not in str(fxreduce.report(compiled))
