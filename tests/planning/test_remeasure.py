"""Measuring again from kept activations gives what measuring from the start does, and runs less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.calibration.loader import Loader
from fxreduce.graph.cuts import behind, cuts
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.run import Run
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import PREPARE
from fxreduce.planning.entries import Entries
from fxreduce.planning.measure import measure
from fxreduce.planning.prepare import prepare
from fxreduce.planning.remeasure import Measuring
from tests.models import Functional, Inverted, Residual, Small, images, points, seeded

MODELS: dict[str, Callable[[], nn.Module]] = {
    "small": Small,
    "in place": lambda: Small(inplace=True),
    "residual": Residual,
    "inverted": Inverted,
    "functional": Functional,
}
BATCHES = 5


def begin(
    name: str, forward: Any = None, seed: int = 0
) -> tuple[GraphModule, Calibration, Any, list[Tensor]]:
    model = seeded(MODELS[name], seed).double()
    data = images(*[6] * BATCHES, dtype=torch.float64)
    if name == "functional":
        data = [points(6, 6, number).double() for number in range(BATCHES)]
    graph_module, calibration, example = prepare(
        model, Loader(data, keep=True), forward, None, False
    )
    prepared = run_pipeline(graph_module, PREPARE).graph_module
    return prepared, calibration.hold_out(3), example.batch, data


def watched(module: nn.Module, calls: list[str]) -> None:
    for path, each in module.named_modules():
        if isinstance(each, (nn.Conv2d, nn.Linear)):
            each.register_forward_hook(lambda *_, path=path: calls.append(path))


def same(a: Any, b: Any) -> None:
    mine, theirs = a.statistics, b.statistics
    assert (a.name, a.kind, a.channel_axis) == (b.name, b.kind, b.channel_axis)
    for field in ("on", "off", "zero"):
        assert torch.equal(getattr(mine, field), getattr(theirs, field))
    assert mine.batches == theirs.batches
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(mine.batch_entropy, theirs.batch_entropy, **close)
    for name in ("mean_z", "m2_z", "mean_out", "m2_out", "c_z_out"):
        ours, others = (getattr(each.required_moments(), name) for each in (mine, theirs))
        torch.testing.assert_close(ours, others, **close)


@pytest.mark.parametrize("bound", [None, 0, 60_000])
@pytest.mark.parametrize("name", MODELS)
def test_the_statistics_are_those_of_measuring_from_the_start(name: str, bound: int | None) -> None:
    current, calibration, example, _ = begin(name)
    options: dict[str, Any] = {"entropy": "paper", "moments": True, "axes": {}}
    measuring = Measuring(calibration, example, bound=bound, **options)
    names = [site.name for site in find_sites(current)]
    # From both ends towards the middle, so that entries are used and dropped.
    order = [names.pop(0 if len(names) % 3 == 0 else -1) for _ in range(len(names) - 1)]
    names = [site.name for site in find_sites(current)]
    for removed in order:
        found = measuring.measure(current, names)
        expected = measure(current, calibration, **options).sites
        assert list(found) == list(expected)
        for each in found:
            same(found[each], expected[each])
        names.remove(removed)
        fit = {removed: found[removed].affine_fit()}
        without = Linearise((removed,), fit).run(current)
        assert not without.refusals
        measuring.removed(current, [removed])
        current = without.graph_module


def test_what_is_before_a_removal_does_not_run_again() -> None:
    current, calibration, example, _ = begin("residual")
    measuring = Measuring(calibration, example, entropy="paper", moments=False, axes={})
    names = [site.name for site in find_sites(current)]
    measuring.measure(current, names)
    measuring.removed(current, [names[-2]])
    current = Linearise((names[-2],)).run(current).graph_module
    calls: list[str] = []
    watched(current, calls)
    measuring.measure(current, [names[-1]])
    first = next(path for path, each in current.named_modules() if isinstance(each, nn.Conv2d))
    assert first not in calls
    assert calls


def test_kept_activations_stay_within_the_bound() -> None:
    for bound in (0, 5_000, 60_000, 1 << 20):
        current, calibration, example, _ = begin("residual")
        measuring = Measuring(
            calibration, example, entropy="paper", moments=False, axes={}, bound=bound
        )
        measuring.measure(current, [site.name for site in find_sites(current)])
        assert measuring.entries.bytes <= bound
        assert (measuring.entries.bytes > 0) == (bound >= 60_000)


def test_a_forward_that_calls_the_model_twice_is_measured_twice() -> None:
    def both(module: nn.Module, batch: Tensor) -> Tensor:
        return module(batch) + module(batch.flip(-1))

    current, calibration, example, _ = begin("residual", both)
    options: dict[str, Any] = {"entropy": "easier-code", "moments": True, "axes": {}}
    measuring = Measuring(calibration, example, **options)
    names = [site.name for site in find_sites(current)]
    for removed in (names[-2], names[1]):
        measuring.measure(current, names)
        names.remove(removed)
        measuring.removed(current, [removed])
        current = Linearise((removed,)).run(current).graph_module
    found = measuring.measure(current, names)
    expected = measure(current, calibration, **options).sites
    for name in names:
        same(found[name], expected[name])


@pytest.mark.parametrize("name", MODELS)
def test_behind_every_cut_the_values_are_those_of_the_whole_graph(name: str) -> None:
    graph_module, _, _, data = begin(name)
    output = graph_module.graph.output_node()
    last = output.all_input_nodes[0]
    found = list(cuts(graph_module))
    assert len(found) > 3
    for cut in found:
        run = Run(graph_module, [data[0].clone()])
        run.until(cut.first)
        part = behind(graph_module, cut, last)
        values = [run.env[value].clone() for value in cut.values]
        assert torch.equal(part(*values), graph_module(data[0].clone()))


def test_a_graph_that_writes_its_buffers_is_not_cut() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            total = self.seen.add_(x.sum())
            return self.linear(x).relu() * total

    assert not list(cuts(torch.fx.symbolic_trace(Counting().eval())))


def test_nothing_is_kept_where_nothing_fits() -> None:
    graph_module, _, _, _ = begin("residual")
    nodes = {site.node for site in find_sites(graph_module)}
    assert Entries(0).choose(graph_module, cuts(graph_module), nodes, 0, 1.0, 4) == ()
