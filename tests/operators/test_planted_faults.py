"""The property tests of compose and add fail where one place of the arithmetic is made wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import test_add
import test_compose
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import bordered_chains, chains, parallel_convs
from torch import Tensor

from fxreduce.errors import EquivalenceError
from fxreduce.operators import add, compose
from fxreduce.operators.affine import Conv

# One failure is enough: it is not looked for a smaller one.
EXAMPLES = settings(
    max_examples=400,
    phases=[Phase.generate],
    database=None,
    derandomize=True,
    deadline=None,
    report_multiple_bugs=False,
)


def check(strategy: st.SearchStrategy[Any], test: Any) -> Callable[[], None]:
    """The suite's own property, on examples of its own strategy."""
    checked: Callable[[], None] = EXAMPLES(given(st.data(), strategy)(test.hypothesis.inner_test))
    return checked


COMPOSED = check(chains(2), test_compose.test_two_operators_compose_exactly_where_the_table_says_so)
SHIFTED = check(bordered_chains(), test_compose.test_a_shift_before_padding_is_carried_exactly)
ADDED = check(parallel_convs(), test_add.test_branches_of_one_stride_and_shape_are_added_exactly)
ADDED_SHIFTED = check(
    parallel_convs(("zeros",)),
    test_add.test_branches_that_carry_a_shift_before_padding_are_added_exactly,
)
Function = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """A function of a module, what makes it wrong, and the property that has to fail."""

    check: Callable[[], None]
    module: ModuleType
    function: str
    spoil: Callable[[Function], Function]


def then(change: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Let the function return something else, where it returns a convolution or a tensor."""

    def spoil(right: Function) -> Function:
        def wrong(*args: Any, **kwargs: Any) -> Any:
            returned = right(*args, **kwargs)
            return change(returned) if isinstance(returned, (Conv, Tensor)) else returned

        return wrong

    return spoil


def swapped_groups(right: Function) -> Function:
    """Let the blocks of groups that are widened lie in the opposite order."""

    def wrong(weight: Tensor, groups: int, fewer: int) -> Tensor:
        widened: Tensor = right(weight, groups, fewer)
        blocks = widened.unflatten(1, (groups // fewer, -1))
        return blocks.flip(1).flatten(1, 2)

    return wrong


def laid_at_the_corner(right: Function) -> Function:
    """Let each kernel lie at the corner of the common grid instead of about the shared centre."""
    return lambda weight, operator, _, grid: right(weight, operator, operator.padding, grid)


def first_alone(_: Function) -> Function:
    return lambda a, b: b if a is None else a


def without_border(merged: Conv) -> Conv:
    return replace(merged, border=None)


def mirrored_border(merged: Conv) -> Conv:
    return merged if merged.border is None else replace(merged, border=merged.border.flip(-1))


def border_as_bias(merged: Conv) -> Conv:
    """What would be right without padding."""
    if merged.border is None:
        return merged
    bias = merged.border.flatten(1).sum(1)
    return replace(merged, border=None, bias=bias if merged.bias is None else merged.bias + bias)


def without_bias(merged: Conv) -> Conv:
    return replace(merged, bias=None)


def doubled_stride(merged: Conv) -> Conv:
    return replace(merged, stride=tuple(2 * step for step in merged.stride))


def less_padding(merged: Conv) -> Conv:
    return replace(merged, padding=tuple(max(size - 1, 0) for size in merged.padding))


FAULTS = {
    "compose drops the border": Fault(SHIFTED, compose, "_carry_bias", then(without_border)),
    "compose mirrors the border": Fault(SHIFTED, compose, "_carry_bias", then(mirrored_border)),
    "compose adds a padded bias everywhere": Fault(
        SHIFTED, compose, "_carry_bias", then(border_as_bias)
    ),
    "compose pads less": Fault(COMPOSED, compose, "_conv_then_conv", then(less_padding)),
    "compose swaps widened groups": Fault(COMPOSED, compose, "regroup", swapped_groups),
    "compose swaps the groups of a bias": Fault(
        COMPOSED, compose, "contract", then(lambda taps: taps.flip(0))
    ),
    "compose drops the bias": Fault(COMPOSED, compose, "_conv_then_conv", then(without_bias)),
    "compose doubles what a bias becomes": Fault(
        COMPOSED, compose, "contract", then(lambda taps: 2 * taps)
    ),
    "compose strides twice as far": Fault(
        COMPOSED, compose, "_conv_then_conv", then(doubled_stride)
    ),
    "add drops the border": Fault(ADDED_SHIFTED, add, "_add_convs", then(without_border)),
    "add mirrors the border": Fault(ADDED_SHIFTED, add, "_add_convs", then(mirrored_border)),
    "add lays kernels at the corner": Fault(ADDED, add, "_lay", laid_at_the_corner),
    "add swaps widened groups": Fault(ADDED, add, "regroup", swapped_groups),
    "add drops the bias": Fault(ADDED, add, "_add_convs", then(without_bias)),
    "add takes the first addend alone": Fault(ADDED, add, "sum_of", first_alone),
    "add strides twice as far": Fault(ADDED, add, "_add_convs", then(doubled_stride)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_property_fails_where_a_fault_is_planted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    right = getattr(fault.module, fault.function)
    monkeypatch.setattr(fault.module, fault.function, fault.spoil(right))
    with pytest.raises((AssertionError, EquivalenceError, RuntimeError, ValueError)):
        fault.check()
