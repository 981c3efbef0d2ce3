"""Cost models: what counts, the order that results, and names."""

from __future__ import annotations

from dataclasses import dataclass

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


def conv(out: int, into: int, *kernel: int, groups: int = 1, **options: tuple[int, ...]) -> Conv:
    return Conv(torch.empty(out, into // groups, *kernel, device="meta"), groups=groups, **options)


@pytest.mark.parametrize(
    ("operator", "figure"),
    [
        (conv(8, 4), 32),
        (conv(8, 4, 3, 3), 288),
        (conv(8, 8, 3, 3, groups=8), 72),
        (conv(8, 8, 3, 3, groups=2), 288),
        (identity(8, 2), 8),
        (Conv(torch.empty(4, 8, 2, 2), transposed=True), 128),
    ],
)
def test_multiply_adds_are_counted_per_output_position(operator: Operator, figure: int) -> None:
    assert multiply_adds(operator) == figure


@pytest.mark.parametrize(
    ("operator", "figure"),
    [
        (identity(8, 2), 16),
        (conv(8, 4, 3, 3), 12),
        (conv(8, 4, 3, 3, stride=(2, 2)), 24),
        (Conv(torch.zeros(8, 4, 3), border=torch.ones(8, 3)), 28),
    ],
)
def test_every_activation_is_moved_once(operator: Operator, figure: int) -> None:
    assert elements_moved(operator) == figure


def test_a_wider_kernel_costs_more_and_groups_cost_less() -> None:
    cost = FlopsCost().cost
    depthwise, pointwise = conv(16, 16, 3, 3, groups=16), conv(16, 16, 1, 1)
    in_order = [identity(16, 2), depthwise, pointwise, conv(16, 16, 3, 3), conv(16, 16, 5, 5)]
    assert sorted(in_order, key=cost) == in_order


def test_the_price_of_memory_is_an_option() -> None:
    operator = conv(8, 4, 3)
    assert FlopsCost(per_element=0).cost(operator) == 96
    assert FlopsCost(per_element=2).cost(operator) == 96 + 2 * 12


def test_two_scale_shifts_cost_more_than_one_and_a_pointwise_hides_none() -> None:
    model, norm, dense = FlopsCost(), identity(8, 2), conv(8, 8, 1, 1)
    assert chain_cost([norm, norm], model) > chain_cost([norm], model)
    assert chain_cost([dense, norm], model) > chain_cost([dense], model)


def test_an_operator_before_a_stride_runs_at_as_many_positions_as_the_stride_skips() -> None:
    cost = FlopsCost(per_element=0)
    first, second = conv(4, 4, 1, 1), conv(4, 4, 3, 3, stride=(2, 3))
    assert chain_cost([first, second], cost) == 6 * 16 + 144
    assert chain_cost([second, first], cost) == 144 + 16
    assert chain_cost([], cost) == 0


def test_a_cost_model_is_found_by_name_or_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Weights:
        name: str = "weights"

        def cost(self, operator: Operator) -> float:
            return 1.0

    monkeypatch.setattr(module, "_NAMED", dict(module._NAMED))
    assert as_cost("flops") == FlopsCost()
    assert as_cost(Weights()) == Weights()
    register_cost("weights", Weights())
    assert as_cost("weights") == Weights()


@pytest.mark.parametrize("cost", ["flop", FlopsCost, 3, None])
def test_what_is_no_cost_model_is_refused_with_the_known_names(cost: object) -> None:
    with pytest.raises(UnsupportedError, match="CostModel or one of 'flops'; seen: "):
        as_cost(cost)  # type: ignore[arg-type]
