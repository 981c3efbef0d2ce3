"""Columns of an operator are what it makes of some input channels; all together they are it."""

from __future__ import annotations

import torch
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import images, ranks, scale_shifts, tensors

from fxreduce.operators.affine import Conv, apply
from fxreduce.operators.columns import columns

SPANS = st.permutations([(0, 2), (2, 1), (3, 3)])


@given(st.integers(1, 3), SPANS, st.data())
def test_columns_add_up_to_the_operator_without_its_bias(
    rank: int, spans: list[tuple[int, int]], data: st.DataObject
) -> None:
    weight, bias = data.draw(tensors(4, 6, *(1,) * rank)), data.draw(tensors(4))
    x = data.draw(images(6, rank))
    parts = [apply(columns(Conv(weight), [span]), x.narrow(1, *span)) for span in spans]
    assert_close(apply(Conv(weight), x), torch.stack(parts).sum(0))
    together = columns(Conv(weight, bias), spans)
    assert together.bias is None
    assert_close(
        apply(Conv(weight), x), apply(together, torch.cat([x.narrow(1, *s) for s in spans], 1))
    )


@given(ranks(), SPANS, st.data())
def test_a_scale_shift_keeps_the_shifts_of_its_channels(
    rank: int, spans: list[tuple[int, int]], data: st.DataObject
) -> None:
    operator = data.draw(scale_shifts(rank, 6))
    x, axis = data.draw(images(6, rank)), -rank - 1
    expected = [apply(operator, x).narrow(axis, *span) for span in spans]
    chosen = torch.cat([x.narrow(axis, *span) for span in spans], axis)
    assert_close(torch.cat(expected, axis), apply(columns(operator, spans), chosen))
