"""The cut of a chain is the cheapest of all, found without trying all."""

from __future__ import annotations

from itertools import combinations

import torch
from hypothesis import given
from strategies import chains

from fxreduce.graph.affine import AffineCall
from fxreduce.operators.affine import Conv, Operator, Refusal, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import FlopsCost, chain_cost
from fxreduce.operators.setting import Setting
from fxreduce.passes.fuse_chain import cheapest_cut


def described(operators: list[Operator]) -> tuple[AffineCall, ...]:
    """Calls of the operators, on nodes that nothing reads, with a weight each."""
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    return tuple(AffineCall(operator, node, node, torch.ones(2)) for operator in operators)


def cost_of(operators: list[Operator], bounds: tuple[int, ...]) -> float | None:
    """The cost of a chain cut at `bounds`; None where a part cannot be merged."""
    parts = []
    for start, end in zip((0, *bounds), (*bounds, len(operators)), strict=True):
        merged: Operator | Refusal = operators[start]
        for operator in operators[start + 1 : end]:
            if isinstance(merged, Refusal):
                return None
            merged = compose(merged, operator)
        if isinstance(merged, Refusal):
            return None
        parts.append(merged)
    return chain_cost(parts, Setting.assumed(parts[0]), FlopsCost())


@given(chains(4))
def test_no_other_cut_of_a_chain_costs_less(operators: list[Operator]) -> None:
    operators = [on_meta(operator) for operator in operators]  # as the pass plans
    parts = cheapest_cut(described(operators), FlopsCost()).parts
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    chosen = cost_of(operators, tuple(ends[:-1]))
    assert chosen is not None
    for size in range(len(operators)):
        for bounds in combinations(range(1, len(operators)), size):
            other = cost_of(operators, bounds)
            assert other is None or chosen <= other * (1 + 1e-12)


def conv(out: int, into: int, kernel: int, groups: int = 1) -> Conv:
    return Conv(torch.zeros(out, into // groups, kernel, kernel), groups=groups)


def test_half_of_an_inverted_residual_is_not_merged_where_all_of_it_is() -> None:
    expand, depthwise, project = conv(96, 16, 1), conv(96, 96, 3, groups=96), conv(16, 96, 1)
    assert [len(part) for part in _parts(expand, depthwise)] == [1, 1]
    assert [len(part) for part in _parts(expand, depthwise, project)] == [3]


def test_of_cuts_that_cost_the_same_the_one_that_merges_less_is_taken() -> None:
    class Free:
        name = "free"

        def cost(self, operator: Operator, setting: Setting) -> float:
            return 0.0

    calls = described([conv(4, 4, 1), conv(4, 4, 1)])
    assert [len(part) for part in cheapest_cut(calls, Free()).parts] == [1, 1]


def _parts(*operators: Operator) -> tuple[tuple[AffineCall, ...], ...]:
    return cheapest_cut(described(list(operators)), FlopsCost()).parts
