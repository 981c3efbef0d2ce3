"""The demonstration's pieces: networks, training, timing, multiply-adds and the table."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from torch import nn

from fxreduce.cli.macs import ptflops_macs
from fxreduce.cli.networks import InvertedResidualNetwork, ResidualNetwork
from fxreduce.cli.training import accuracy, agreement, train
from fxreduce.report.table import table
from fxreduce.timing import median_latencies


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


def two_classes(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise whose left or right half is brighter, and which one it is."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (images,), generator=random)
    inputs = torch.randn(images, 1, 8, 8, generator=random)
    inputs[..., :4] += labels.view(-1, 1, 1, 1) * 2
    return inputs, labels


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )


def test_training_learns_is_repeatable_and_ends_in_eval_mode() -> None:
    images, labels = two_classes(256)
    weights = []
    for _ in range(2):
        network = small_network()
        network(images[:2])
        train(network, images, labels, epochs=12, seed=1)
        assert not network.training
        assert next(network.parameters()).is_contiguous()
        assert accuracy(network, [(images, labels)]) > 0.95
        weights.append(network.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_accuracy_and_agreement_weigh_images_not_batches() -> None:
    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Flipped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x[:, :1] > 5, x.flip(1), x)

    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [9.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    batches = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]
    assert accuracy(First(), batches) == 0.5
    assert agreement(First(), Flipped(), batches, "cpu") == 0.75


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
