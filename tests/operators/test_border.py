"""Inside, two convolutions are one; at the border, slices give what the two give on the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fxreduce.operators.affine import Conv, Operator, Refusal, identity
from fxreduce.operators.border import Strip, Window, compose_inside, strip_calls, strips, windows
from fxreduce.operators.cost import multiply_adds
from fxreduce.operators.setting import Setting


def conv(out: int, into: int, *kernel: int, **options: object) -> Conv:
    return Conv(torch.ones(out, into, *kernel), **options)  # type: ignore[arg-type]


def test_two_padded_convolutions_have_the_kernel_and_padding_of_the_formula() -> None:
    f = conv(4, 3, 3, 3, stride=(2, 2), padding=(1, 1))
    g = conv(5, 4, 3, 3, padding=(1, 1))
    merged = compose_inside(f, g)
    assert isinstance(merged, Conv)
    assert (merged.kernel, merged.stride, merged.padding) == ((7, 7), (2, 2), (3, 3))


def test_the_strips_of_two_plain_convolutions_are_one_output_wide() -> None:
    window = Window(3, 1, 1, 1)
    low, high = strips(window, window, 10) or ()
    assert low == Strip(start=0, stop=3, skipped=0, taken=2, dropped=0, first=0, count=1)
    assert high == Strip(start=7, stop=10, skipped=1, taken=2, dropped=1, first=9, count=1)


def test_a_short_axis_has_nothing_inside() -> None:
    window = Window(3, 1, 1, 1)
    assert strips(window, window, 2) is None
    assert strips(window, window, 3) is not None


def test_without_padding_behind_there_is_no_strip() -> None:
    assert strips(Window(3, 1, 1, 1), Window(3, 1, 0, 1), 9) == ()


@given(st.data())
def test_outputs_in_no_strip_read_only_what_was_computed(data: st.DataObject) -> None:
    drawn = st.builds(
        Window, st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3)
    )
    f, g, size = data.draw(drawn), data.draw(drawn), data.draw(st.integers(1, 30))
    found = strips(f, g, size)
    assume(found is not None)
    middle = f.length(size)
    outside = {strip.first + i for strip in found or () for i in range(strip.count)}
    for output in range(g.length(middle)):
        taps = [g.stride * output - g.padding + g.dilation * a for a in range(g.kernel)]
        assert (output in outside) == any(not 0 <= tap < middle for tap in taps)


@pytest.mark.parametrize(
    ("f", "g", "reason"),
    [
        (identity(4, 2), conv(4, 4, 3, 3, padding=(1, 1)), "only convolutions"),
        (
            conv(4, 4, 3, padding=(1,), border=torch.ones(4, 3)),
            conv(4, 4, 3, padding=(1,)),
            "a constant channel ends at the border",
        ),
        (
            conv(4, 4, 3, padding=(1,), padding_mode="reflect"),
            conv(4, 4, 3, padding=(1,)),
            "reflect padding reads values",
        ),
        (
            conv(4, 4, 3, padding=(1,)),
            conv(4, 4, 3, padding=(1,), padding_mode="circular"),
            "circular padding reads values",
        ),
        (
            conv(4, 4, 3, transposed=True),
            conv(4, 4, 3, padding=(1,)),
            "a transposed convolution writes",
        ),
    ],
)
def test_what_cannot_be_merged_inside_is_refused_with_the_reason(
    f: Operator, g: Operator, reason: str
) -> None:
    refusal = compose_inside(f, g)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


def test_the_calls_at_the_border_are_both_convolutions_on_each_of_four_slices_with_long_rows() -> (
    None
):
    f, g = conv(8, 3, 3, 5, padding=(1, 2)), conv(8, 8, 3, 3, padding=(1, 1))
    calls = list(strip_calls(f, g, Setting((1, 3, 20, 30))) or ())
    assert [setting.shape for _, setting in calls] == [
        (1, 3, 3, 30),
        (1, 8, 2, 30),
        (1, 3, 3, 30),
        (1, 8, 2, 30),
        (1, 3, 4, 20),
        (1, 8, 2, 20),
        (1, 3, 4, 20),
        (1, 8, 2, 20),
    ]
    assert all(setting.sliced for _, setting in calls)
    assert [operator for operator, _ in calls[:4]] == [f, g] * 2
    assert [(each.kernel, each.padding) for each, _ in calls[4:6]] == [
        ((5, 3), (2, 1)),
        ((3, 3), (1, 1)),
    ]
    assert multiply_adds(*calls[0]) == 3 * 30 * 3 * 8 * 15
    assert strip_calls(f, g, Setting((1, 3, 20, 2))) is None


def test_windows_are_read_axis_by_axis() -> None:
    operator = conv(4, 4, 3, 5, stride=(1, 2), padding=(0, 2), dilation=(3, 1))
    assert windows(operator) == (Window(3, 1, 0, 3), Window(5, 2, 2, 1))
