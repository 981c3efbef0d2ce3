"""Peers on a tiny network: all compute the same, and one that cannot is a row with its reason."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import fxreduce
from benchmarks import peers, pruning
from benchmarks.peers import measure, tables
from tests.models import seeded

NETWORK = partial(
    nn.Sequential,
    nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3),
    nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
)  # fmt: skip


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> torch.fx.GraphModule:
    """A captured network; compiling it is left out."""
    monkeypatch.setattr(peers, "compiled", lambda model, images: partial(model, images))
    return fxreduce.capture(seeded(NETWORK))


def test_all_peers_compute_what_the_unmerged_network_does(network: torch.fx.GraphModule) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = list(measure("tiny", network, images, runs=1))
        forwards, notes = peers.ways(network, images)
        expected = network(images)
    assert [each.runtime for each in found] == list(peers.PEERS)
    assert notes == {}
    assert len(forwards) == 6
    for forward in forwards.values():
        torch.testing.assert_close(forward(), expected, rtol=1e-4, atol=1e-5)
    for each in found:
        assert each.peer_deviation < 1e-5
        assert each.ours_deviation < 1e-5
        assert each.ratio == each.peer_ms / each.ours_ms
    (table,) = tables(found)
    assert len(table.rows) == 3


def test_a_peer_that_fails_is_a_row_with_its_reason(
    network: torch.fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(peers, "onnx_forward", refuse)
    with torch.no_grad():
        found = list(measure("tiny", network, torch.randn(2, 3, 8, 8), runs=1))
    assert found[2].peer_ms is None
    assert found[2].ratio is None
    measured, missing = tables(found)
    assert measured.cells()[2][3] == ""
    assert "no such operator" in missing.cells()[0][2]
    assert "and more" not in missing.cells()[0][2]


class Track:
    """A race in which a network is as fast as its channels are few; ours is twice as fast."""

    def speeds(self, share: float) -> list[float]:
        return [2.0, 1 / (1 - share)]


def test_the_least_share_that_is_fast_enough_is_found() -> None:
    share = pruning.share_for(Track(), lambda share: share, steps=8)
    assert 0.5 <= share < 0.51


def test_where_no_share_is_fast_enough_the_largest_is_taken() -> None:
    class Slow(Track):
        def speeds(self, share: float) -> list[float]:
            return [2.0, 1.5]

    assert pruning.share_for(Slow(), lambda share: share, steps=8) == pruning.LARGEST
    network = seeded(NETWORK)
    assert "slower" in pruning.doubt(network, network, pruning.LARGEST)
    assert pruning.doubt(network, network, 0.5) == ""
    assert "whole" in pruning.doubt(network, nn.Linear(2, 2), 0.5)


def test_what_comes_to_no_end_is_given_up() -> None:
    def endless() -> None:
        with pruning.within(0.01):
            while True:
                pass

    with pytest.raises(TimeoutError, match=r"not done after 0.01 s"):
        endless()


def test_without_torch_pruning_the_part_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(fxreduce.UnsupportedError, match=r"torch.pruning.*fxreduce\[bench\]"):
        pruning.pruning_library()


@pytest.mark.filterwarnings("ignore")  # of the library's own
@pytest.mark.parametrize("importance", pruning.IMPORTANCES)
def test_pruned_networks_lack_channels_and_the_given_one_is_left_alone(importance: str) -> None:
    pytest.importorskip("torch_pruning")
    network = seeded(NETWORK)
    before = copy.deepcopy(network.state_dict())
    smaller = pruning.pruned(network, importance, 0.5)
    torch.testing.assert_close(network.state_dict(), before)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (smaller, network)]
    assert sizes[0] < sizes[1]
    assert smaller(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
