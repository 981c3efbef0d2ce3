"""Cost models: what counts, the order that results, and names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fxreduce.errors import UnsupportedError
from fxreduce.operators import cost as module
from fxreduce.operators.affine import Conv, Operator, identity
from fxreduce.operators.cost import (
    FlopsCost,
    as_cost,
    chain_cost,
    elements_moved,
    multiply_adds,
    register_cost,
)
from fxreduce.operators.setting import Setting


def conv(out: int, into: int, *kernel: int, groups: int = 1, **options: tuple[int, ...]) -> Conv:
    return Conv(torch.empty(out, into // groups, *kernel, device="meta"), groups=groups, **options)


def image(channels: int, *spatial: int, batch: int = 1) -> Setting:
    return Setting((batch, channels, *spatial))


@pytest.mark.parametrize(
    ("operator", "setting", "figure"),
    [
        (conv(8, 4), Setting((5, 7, 4)), 35 * 32),
        (conv(8, 4, 3, 3), image(4, 6, 7), 4 * 5 * 288),
        (conv(8, 4, 3, 3, padding=(1, 1)), image(4, 6, 7, batch=2), 2 * 6 * 7 * 288),
        (conv(8, 8, 3, 3, groups=8), image(8, 3, 3), 72),
        (conv(8, 8, 3, 3, groups=2), image(8, 3, 3), 288),
        (identity(8, 2), image(8, 2, 2), 32),
        (Conv(torch.empty(4, 8, 2, 2), transposed=True), image(4, 3, 3), 9 * 128),
    ],
)
def test_multiply_adds_are_those_of_the_whole_input(
    operator: Operator, setting: Setting, figure: int
) -> None:
    assert multiply_adds(operator, setting) == figure


@pytest.mark.parametrize(
    ("operator", "setting", "figure"),
    [
        (identity(8, 2), image(8, 5, 5), 400),
        (conv(8, 4, 3, 3), image(4, 5, 5), 4 * 25 + 8 * 9),
        (conv(8, 4, 3, 3, stride=(2, 2)), image(4, 5, 5), 4 * 25 + 8 * 4),
        (Conv(torch.zeros(8, 4, 3), border=torch.ones(8, 3)), image(4, 5), 4 * 5 + 3 * 8 * 3),
    ],
)
def test_every_activation_is_moved_once_and_a_border_passes_over_the_output_once_more(
    operator: Operator, setting: Setting, figure: int
) -> None:
    assert elements_moved(operator, setting) == figure


def test_a_wider_kernel_costs_more_and_groups_cost_less() -> None:
    depthwise, pointwise = conv(16, 16, 3, 3, groups=16), conv(16, 16, 1, 1)
    in_order = [identity(16, 2), depthwise, pointwise, conv(16, 16, 3, 3), conv(16, 16, 5, 5)]
    cost = FlopsCost().cost
    assert sorted(in_order, key=lambda each: cost(each, Setting.assumed(each))) == in_order


def test_the_price_of_memory_is_an_option() -> None:
    operator, setting = conv(8, 4, 3), image(4, 3)
    assert FlopsCost(per_element=0).cost(operator, setting) == 96
    assert FlopsCost(per_element=2).cost(operator, setting) == 96 + 2 * (12 + 8)


def test_a_slice_of_each_sample_has_its_price() -> None:
    operator, whole = conv(8, 4, 3, 3), Setting((5, 4, 3, 9))
    counted = FlopsCost().cost(operator, whole)
    sliced = replace(whole, sliced=True)
    assert FlopsCost(per_slice=1000).cost(operator, sliced) == counted + 5 * 1000
    assert FlopsCost(per_slice=1000).cost(operator, whole) == counted


def test_two_scale_shifts_cost_more_than_one_and_a_pointwise_hides_none() -> None:
    model, norm, dense, where = FlopsCost(), identity(8, 2), conv(8, 8, 1, 1), image(8, 4, 4)
    assert chain_cost([norm, norm], where, model) > chain_cost([norm], where, model)
    assert chain_cost([dense, norm], where, model) > chain_cost([dense], where, model)


def test_an_operator_before_a_stride_runs_at_as_many_positions_as_the_stride_skips() -> None:
    cost, where = FlopsCost(per_element=0), image(4, 13, 19)
    first, second = conv(4, 4, 1, 1), conv(4, 4, 3, 3, stride=(2, 3))
    assert chain_cost([first, second], where, cost) == 13 * 19 * 16 + 36 * 144
    assert chain_cost([second, first], where, cost) == 36 * 144 + 36 * 16
    assert chain_cost([], where, cost) == 0


def test_a_cost_model_is_found_by_name_or_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Weights:
        name: str = "weights"

        def cost(self, operator: Operator, setting: Setting) -> float:
            return 1.0

    monkeypatch.setattr(module, "_NAMED", dict(module._NAMED))
    assert as_cost("flops") == FlopsCost()
    assert as_cost(Weights()) == Weights()
    register_cost("weights", Weights())
    assert as_cost("weights") == Weights()


@pytest.mark.parametrize("cost", ["flop", FlopsCost, 3, None])
def test_what_is_no_cost_model_is_refused_with_the_known_names(cost: object) -> None:
    with pytest.raises(UnsupportedError, match="CostModel or one of 'flops'"):
        as_cost(cost)  # type: ignore[arg-type]
