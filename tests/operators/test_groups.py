"""Merged operators have as many groups as the channels that depend on each other allow."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from exactness import assert_same_map, random
from hypothesis import given
from hypothesis import strategies as st
from strategies import CHANNELS
from torch import Tensor

from fxreduce.operators.add import add
from fxreduce.operators.affine import Conv, Operator, Refusal, apply
from fxreduce.operators.compose import compose


def grouped(into: int, out: int, groups: int, *, transposed: bool = False) -> Conv:
    first, second = (into, out) if transposed else (out, into)
    stride = (2,) if transposed else (1,)
    weight = random(first, second // groups, 1)
    return Conv(weight, stride=stride, groups=groups, transposed=transposed)


def independent_parts(*branches: tuple[Operator, ...]) -> int:
    """Into how many parts the channels fall that no path from input to output joins.

    Each branch is a chain from the same input to the same output.
    """
    graph: nx.Graph[tuple[str, int]] = nx.Graph()
    for number, chain in enumerate(branches):
        for depth, operator in enumerate(chain):
            reads = "in" if depth == 0 else f"{number}.{depth}"
            writes = "out" if depth == len(chain) - 1 else f"{number}.{depth + 1}"
            pulses = torch.eye(operator.in_channels, dtype=torch.float64).unsqueeze(2)
            reached: Tensor = apply(operator, pulses).abs().amax(2) > 0
            graph.add_nodes_from((reads, i) for i in range(operator.in_channels))
            graph.add_nodes_from((writes, o) for o in range(operator.out_channels))
            graph.add_edges_from(((reads, int(i)), (writes, int(o))) for i, o in reached.nonzero())
    return nx.number_connected_components(graph)


@given(st.data(), st.booleans())
def test_a_chain_keeps_every_group_that_no_path_joins(data: st.DataObject, up: bool) -> None:
    into, middle, out = (data.draw(st.sampled_from((*CHANNELS, 12))) for _ in range(3))
    divisors = [n for n in (*CHANNELS, 12) if into % n == 0 == middle % n]
    first = data.draw(st.sampled_from(divisors))
    second = data.draw(st.sampled_from([n for n in (*CHANNELS, 12) if middle % n == 0 == out % n]))
    f, g = grouped(into, middle, first), grouped(middle, out, second, transposed=up)
    merged = compose(f, g)
    assert isinstance(merged, Conv)
    assert merged.groups == independent_parts((f, g))
    assert_same_map(merged, [f, g], random(2, into, 3))


@given(st.data())
def test_a_sum_keeps_every_group_that_no_path_joins(data: st.DataObject) -> None:
    into, out = (data.draw(st.sampled_from((*CHANNELS, 12))) for _ in range(2))
    divisors = [n for n in (*CHANNELS, 12) if into % n == 0 == out % n]
    f, g = (grouped(into, out, data.draw(st.sampled_from(divisors))) for _ in range(2))
    merged = add(f, g)
    assert isinstance(merged, Conv)
    assert merged.groups == independent_parts((f,), (g,))


@pytest.mark.parametrize(
    ("f", "g", "groups"),
    [
        (grouped(8, 8, 4), grouped(8, 8, 2), 2),
        (grouped(8, 8, 2), grouped(8, 8, 4), 2),
        (grouped(6, 6, 6), grouped(6, 9, 3), 3),
        (grouped(9, 6, 3), grouped(6, 6, 6), 3),
        # Depthwise that writes two channels for each it reads, then depthwise: still depthwise.
        (grouped(4, 8, 4), grouped(8, 8, 8), 4),
        (grouped(4, 8, 4), grouped(8, 4, 4), 4),
        (grouped(4, 8, 4), grouped(8, 8, 2, transposed=True), 2),
        # Groups of two and of three channels overlap, all over.
        (grouped(6, 6, 3), grouped(6, 6, 2), 1),
    ],
)
def test_partitions_that_nest_stay(f: Conv, g: Conv, groups: int) -> None:
    merged = compose(f, g)
    assert not isinstance(merged, Refusal)
    assert isinstance(merged, Conv)
    assert merged.groups == groups == independent_parts((f, g))
    assert merged.weight.numel() * groups == f.in_channels * g.out_channels
