"""The demonstration: two networks trained on real digits, reduced, every figure side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.fx import GraphModule

import fxreduce
from fxreduce.cli.macs import ptflops_macs
from fxreduce.cli.networks import InvertedResidualNetwork, ResidualNetwork
from fxreduce.data.dataset import DataSet, as_tensor
from fxreduce.data.digits import open_digits
from fxreduce.timing import median_latencies
from fxreduce.training.evaluate import Accuracy
from fxreduce.training.settings import TrainingSettings
from fxreduce.training.trainer import Trainer

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": ResidualNetwork,
    "inverted residual": InvertedResidualNetwork,
}
COMPENSATIONS = ("identity", "channel", "refit")
# Only weights decay: a decaying shift of a batch-norm would centre what rectifiers are given.
# Depthwise convolutions train about twice as fast with channels last.
_TRAINING = TrainingSettings(
    batch_size=64,
    nesterov=True,
    weight_decay=5e-4,
    decay_vectors=False,
    schedule="onecycle",
    channels_last=True,
)


@dataclass(frozen=True)
class Settings:
    """What the demonstration runs with; the defaults take about a minute on two cores."""

    seed: int = 0
    fraction: float = 0.5
    size: int = 16
    epochs: int = 16
    calibration_batch: int = 50
    latency_batch: int = 8
    rounds: int = 100
    networks: tuple[str, ...] = tuple(NETWORKS)
    quiet: bool = False


@dataclass(frozen=True)
class Way:
    """One way to reduce a network, with the name that the table has for its budget."""

    label: str
    budget: int | float | str
    compensate: str


@dataclass(frozen=True)
class Measured:
    """What a network takes for a forward, its accuracy on the test images, and ptflops' count."""

    seconds: float
    accuracy: float
    macs: int


@dataclass(frozen=True)
class Row:
    """One network reduced in one way."""

    network: str
    way: Way
    report: fxreduce.Report
    before: Measured
    after: Measured

    @property
    def ratio(self) -> float:
        """How many times as fast the reduced network is."""
        return self.before.seconds / self.after.seconds


def run(settings: Settings) -> list[Row]:
    """Train, reduce and measure every network of the settings, in this order.

    Training looks at the training images alone, fxreduce at the calibration images alone, and the
    test images are used once, for the accuracies.
    """
    digits = open_digits("digits", 1, (settings.size, settings.size), seed=settings.seed)
    threads = torch.get_num_threads()
    # More threads gain little on images this small, and make latencies depend on what else runs.
    torch.set_num_threads(1)
    try:
        return [row for name in settings.networks for row in _network_rows(name, digits, settings)]
    finally:
        torch.set_num_threads(threads)


def _network_rows(name: str, digits: DataSet, settings: Settings) -> list[Row]:
    torch.manual_seed(settings.seed)
    network = NETWORKS[name]()
    start = time.perf_counter()
    Trainer(
        digits,
        replace(_TRAINING, epochs=settings.epochs),
        seed=settings.seed,
        description=f"training the {name} network",
        progress=False if settings.quiet else None,
    )(network)
    _say(f"trained the {name} network in {time.perf_counter() - start:.0f} s", settings)
    start = time.perf_counter()
    ways = _ways(settings)
    reduced = [_reduce(network, digits, settings, way) for way in ways]
    _say(f"reduced it in {len(reduced)} ways in {time.perf_counter() - start:.0f} s", settings)

    inputs, _ = digits.source.fetch(digits.test[: settings.latency_batch])
    images = as_tensor(inputs, "the demonstration")
    judge = Accuracy(digits.part("test", 100))
    calls = [partial(module, images) for module in (network, *reduced)]
    before, *after = (
        Measured(seconds, judge(module), ptflops_macs(module, tuple(images.shape[1:])))
        for module, seconds in zip(
            (network, *reduced),
            median_latencies(calls, images.device, rounds=settings.rounds),
            strict=True,
        )
    )
    rows = [
        Row(name, way, fxreduce.report(module), before, measured)
        for way, module, measured in zip(ways, reduced, after, strict=True)
    ]
    for row in rows:
        ours = row.report.macs_before, row.report.macs_after
        theirs = row.before.macs, row.after.macs
        if ours != theirs:
            raise AssertionError(f"{name}: {ours} multiply-adds, but ptflops counts {theirs}")
    return rows


def _ways(settings: Settings) -> list[Way]:
    # Without a removal only exact merging is left; what the others gain beyond is the removals'.
    ways = [Way("none", 0, "identity")]
    for label, budget in (("auto", "auto"), (f"{settings.fraction:.0%}", settings.fraction)):
        ways += [Way(label, budget, compensate) for compensate in COMPENSATIONS]
    return ways


def _reduce(network: nn.Module, digits: DataSet, settings: Settings, way: Way) -> GraphModule:
    return fxreduce.apply(
        network,
        digits.part("validation", settings.calibration_batch),
        budget=way.budget,
        compensate=way.compensate,
        progress=False if settings.quiet else None,
    )


def _say(message: str, settings: Settings) -> None:
    if not settings.quiet:
        print(message, file=sys.stderr, flush=True)
