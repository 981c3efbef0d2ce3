"""Operators that follow one another and stay apart have a row in the report that says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from networks import Network
from strategies import networks
from torch import Tensor
from torch.fx import GraphModule

import fxreduce
from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.nodes import label


def neighbours(graph_module: GraphModule) -> Iterator[tuple[str, str]]:
    """The labels of an affine operator and of another one that reads it."""
    for node in graph_module.graph.nodes:
        call = read_affine(graph_module, node)
        if isinstance(call, AffineCall):
            before = read_affine(graph_module, call.input)
            if isinstance(before, AffineCall):
                yield label(call.input), label(node)


def unexplained(fused: GraphModule) -> list[tuple[str, str]]:
    """The neighbours that no refusal names together, nor one of them alone."""
    rows = {frozenset(each.where.split(" → ")) for each in fxreduce.report(fused).refusals}
    return [
        pair
        for pair in neighbours(fused)
        if not any(row >= set(pair) or (len(row) == 1 and row <= set(pair)) for row in rows)
    ]


@given(networks(), st.booleans())
def test_whatever_the_network_every_pair_that_stays_apart_has_its_reason(
    drawn: tuple[Network, Tensor], shapes: bool
) -> None:
    net, x = drawn
    assert unexplained(fxreduce.fuse(net, example_inputs=x if shapes else None)) == []


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
def test_so_has_every_pair_of_a_model_without_its_rectifiers(name: str) -> None:
    model = torchvision.models.get_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    sites = [site.name for site in fxreduce.report(fxreduce.fuse(model)).sites]
    fused = fxreduce.fuse(fxreduce.linearize(model, sites), example_inputs=x)
    assert len(list(neighbours(fused))) >= 3
    assert unexplained(fused) == []
