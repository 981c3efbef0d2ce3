"""The demonstration's pieces: networks, timing, multiply-adds and the table."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from torch import nn

from fxreduce.cli.macs import ptflops_macs
from fxreduce.cli.networks import InvertedResidualNetwork, ResidualNetwork
from fxreduce.report.table import table
from fxreduce.timing import least_latencies, median_latencies


@pytest.mark.parametrize(
    ("network", "rectifier", "modules"),
    [(ResidualNetwork, nn.ReLU, 9), (InvertedResidualNetwork, nn.ReLU6, 19)],
)
def test_a_network_maps_images_to_logits_with_in_place_rectifiers(
    network: type[nn.Module], rectifier: type[nn.Module], modules: int
) -> None:
    module = network().eval()
    found = [layer for layer in module.modules() if isinstance(layer, rectifier)]
    assert len(found) == modules
    assert all(layer.inplace for layer in found)
    assert module(torch.randn(2, 1, 16, 16)).shape == (2, 10)


def test_latencies_are_medians_of_calls_in_turns() -> None:
    calls: list[str] = []

    def sleep(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    timed = [partial(sleep, "a", 0.001), partial(sleep, "b", 0.02)]
    short, long = median_latencies(timed, torch.device("cpu"), rounds=5, warm_up=2)
    assert [sorted(calls[turn : turn + 2]) for turn in range(0, 14, 2)] == [["a", "b"]] * 7
    assert 0.001 <= short < long
    assert long >= 0.02
    seconds = iter((0.02, 0.02, 0.001))
    (least,) = least_latencies(
        [lambda: sleep("a", next(seconds))], torch.device("cpu"), rounds=2, warm_up=1
    )
    assert 0.001 <= least < 0.02


def test_ptflops_counts_exactly_the_multiply_adds_of_convolutions_and_linears() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=True),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 7),
    ).eval()
    expected = 4 * 2 * 9 * (5 * 5) + 4 * 9 * (3 * 3) + 4 * 7
    assert ptflops_macs(module, (2, 10, 10)) == expected
    assert ptflops_macs(torch.fx.symbolic_trace(module), (2, 10, 10)) == expected
    assert module[0].bias is not None  # the module itself keeps its biases


def test_a_table_is_aligned_with_numbers_to_the_right() -> None:
    text = table(("name", "n", "share"), [("a", "10", "1 %"), ("longer", "9", "100 %")])
    assert text.splitlines() == [
        "name     n  share",
        "------  --  -----",
        "a       10    1 %",
        "longer   9  100 %",
    ]
