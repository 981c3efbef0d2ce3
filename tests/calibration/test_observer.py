from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from observing import (
    DTYPES,
    LAYOUTS,
    RECTIFIERS,
    assert_counts,
    bits,
    copied,
    counts,
    laid_out,
    observed,
    observer_of,
    pre_activations,
    small_blocks,
)
from torch import Tensor, nn

from fxreduce.calibration import observer
from fxreduce.calibration.observer import Observer, require_finite
from fxreduce.errors import CalibrationError

__all__ = ["small_blocks"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("small_blocks")
@given(
    pre_activations(),
    st.sampled_from(sorted(RECTIFIERS)),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
def test_counts_are_exact_and_outputs_are_the_rectifiers_bit_for_bit(
    given: tuple[Tensor, int], kind: str, in_place: bool, moments: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    z, channel_axis = given
    expected = counts(z, channel_axis)
    rectified = RECTIFIERS[kind](z)
    made = observer_of(kind, channel_axis, moments=moments, in_place=in_place)
    before = copied(z)
    with torch.no_grad():
        output = made(before)
    assert_counts(made.statistics, expected)
    assert (output is before) == (in_place or not made.replaces)
    assert torch.equal(bits(output), bits(rectified if made.replaces else z))
    if output is not before:
        assert torch.equal(bits(before), bits(z))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "channel_axis"),
    [
        ((4, 8, 112, 112), -3),
        ((2, 3, 224, 224), -3),
        ((8, 256, 7, 7), -3),
        ((2, 3, 127, 131), -3),  # no row can be cut into equal parts of at most 4095
        ((3, 5000, 48), -1),
        ((2, 9001), -1),
        ((30000, 3), -1),
        ((1, 2, 1_100_000), -2),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_counts_of_many_blocks_are_exact(
    shape: tuple[int, ...], channel_axis: int, channels_last: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    z = torch.randn(shape)
    if channels_last:
        z = laid_out(z, "channels_last", channel_axis)
    expected, rectified = counts(z, channel_axis), F.relu(z)
    seen = observed(z, channel_axis=channel_axis, in_place=True).statistics
    assert_counts(seen, expected)
    assert torch.equal(z, rectified)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_million_equal_signs_are_counted_exactly(sign: int) -> None:
    z = torch.full((1, 1, 2048, 2048), 1e-45 * sign)
    assert_counts(observed(z).statistics, counts(z, -3))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_value_that_is_not_finite_is_noticed(
    value: float, moments: bool, dtype: torch.dtype, layout: str
) -> None:
    z = torch.randn(3, 4, 7, 7).to(dtype)
    z[1, 2, 3, 4] = value
    z = laid_out(z, layout)
    fine = observed(torch.randn(2, 3, 8, 8))
    for in_place in (False, True):
        made = observed(copied(z), in_place=in_place, moments=moments)
        with pytest.raises(CalibrationError, match=r"a\.b must be finite.* batch 17"):
            require_finite([fine, made], 17)
        with pytest.raises(CalibrationError, match=r"a\.b must be finite.* batch 0"):
            _ = made.statistics
        with pytest.raises(CalibrationError, match="must be finite"):
            _ = made.statistics  # and stays so


def test_the_batch_that_is_not_finite_is_named_among_many() -> None:
    fine = torch.randn(2, 3, 8, 8)
    made = observed(fine, torch.randn(5, 3, 8, 8), torch.full_like(fine, torch.inf), fine)
    with pytest.raises(CalibrationError, match="batch 2"):
        _ = made.statistics


def test_finite_batches_pass() -> None:
    unused = Observer("unused", -1, rectify=None, moments=False)
    require_finite([unused], 0)
    require_finite([unused, observed(torch.randn(2, 3, 8, 8))], 0)


def test_memory_does_not_grow_with_the_number_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "_WAITING", 1000)

    def live() -> int:
        return sum(each.numel() for each in gc.get_objects() if type(each) is Tensor)

    made = observed(torch.randn(2, 8, 16, 16), moments=True)
    before = live()
    with torch.no_grad():
        for count in range(300):
            made(torch.randn(2, 8, 16, 16))
            if count % 50 == 49:  # looking at every object takes longer than a thousand batches
                assert live() - before < 2000


def test_gradients_pass_through_an_observer_as_through_the_rectifier() -> None:
    for in_place in (False, True):
        for kind, rectify in RECTIFIERS.items():
            x = torch.randn(2, 3, 8, 8, requires_grad=True)
            made = observer_of(kind, in_place=in_place, moments=True)
            output = made(x * 2)
            (expected,) = torch.autograd.grad(
                (rectify(x * 2) if made.replaces else x * 2).square().sum(), x
            )
            (found,) = torch.autograd.grad(output.square().sum(), x)
            assert torch.equal(found, expected)
            assert_counts(made.statistics, counts(x.detach(), -3))


def test_statistics_can_be_read_outside_of_inference_mode() -> None:
    z = torch.randn(2, 3, 8, 8)
    made = observer_of("relu", moments=True)
    with torch.inference_mode():
        made(z)
    made(z)
    assert_counts(made.statistics, [2 * count for count in counts(z, -3)])


def test_statistics_can_be_read_between_batches_and_forgotten() -> None:
    z = torch.randn(2, 3, 8, 8)
    made = observed(z)
    assert made.statistics.batches == 1
    made(z)
    assert made.statistics.batches == 2
    made.reset()
    with pytest.raises(CalibrationError, match=r"a\.b has seen no values"):
        _ = made.statistics
    made(torch.randn(2, 5, 8, 8))
    assert len(made.statistics.on) == 5


def test_an_empty_batch_is_no_batch() -> None:
    z = torch.randn(2, 3, 8, 8)
    made = observed(torch.empty(0, 3, 8, 8), moments=True)
    assert made(torch.empty(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    made(z)
    made(torch.empty(0, 3, 8, 8))
    assert made.statistics.batches == 1
    assert_counts(made.statistics, counts(z, -3))


def test_another_number_of_channels_is_an_error_that_names_the_site() -> None:
    made = observed(torch.randn(2, 3, 8, 8))
    with pytest.raises(CalibrationError, match=r"a\.b must have the same channels.*: 3, then 4"):
        made(torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize("z", [torch.randn(3, 4), torch.ones(2, 3, 8, 8, dtype=torch.int64)])
def test_what_is_no_pre_activation_is_an_error_that_names_the_site(z: Tensor) -> None:
    with pytest.raises(CalibrationError, match=r"of a\.b must be floating-point and have"):
        observed(z)


def test_an_observer_that_cannot_work_is_not_made() -> None:
    with pytest.raises(CalibrationError, match="counted from the right"):
        Observer("site", 1, rectify=None, moments=False)
    with pytest.raises(CalibrationError, match="need its rectifier"):
        Observer("site", -1, rectify=None, moments=True)


def test_an_observer_leaves_the_models_parameters_alone() -> None:
    made = Observer("site", -3, rectify=nn.PReLU(3), moments=True)
    assert not list(made.parameters())
    assert not made.state_dict()
