"""The profile-guided mode: the first calls are observed, then a plan is made and carried out."""

from __future__ import annotations

import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.dynamo.profile import _DECIDED
from tests.backend.compiling import Inner
from tests.checks import assert_close
from tests.models import Inverted, Residual, Small, images, seeded

pytestmark = pytest.mark.usefixtures("no_grad")
CALLS = 4


def batches(*sizes: int, seed: int = 0) -> list[Tensor]:
    return [batch.double() for batch in images(*(sizes or (8,) * CALLS), seed=seed)]


def backend(inner: Inner, **options: Any) -> Any:
    return fxreduce.backend(inner, calibrate=CALLS, **{"budget": 1, **options})


def planned(model: nn.Module, data: list[Tensor], **options: Any) -> nn.Module:
    """What planning ahead of time makes of the same data."""
    analysis = fxreduce.analyze(model, data, progress=False)
    return analysis.plan(**{"budget": 1, **options}).apply(model, verify=False)


@pytest.mark.parametrize("compensate", ["identity", "channel", "refit"])
@pytest.mark.parametrize("make", [Small, Residual, Inverted])
def test_after_the_first_calls_it_computes_what_a_plan_from_them_does(
    make: type[nn.Module], compensate: str, inner: Inner
) -> None:
    model, data = seeded(make).double(), batches()
    compiled = torch.compile(model, backend=backend(inner, compensate=compensate))
    for x in data:
        assert torch.equal(model(x), compiled(x))  # the unmodified model's
        assert inner.compilations == 0
    expected, x = planned(model, data, compensate=compensate), batches(8, seed=5)[0]
    for _ in range(3):
        assert_close(expected(x), compiled(x))
    assert (expected(x) - model(x)).abs().max() > 1e-4
    assert inner.compilations == 1
    assert fxreduce.report(compiled).removed == fxreduce.report(expected).removed


def test_the_report_tells_how_far_observing_is_and_what_was_decided() -> None:
    model, data = seeded(Residual).double(), batches()
    used = backend(Inner())
    compiled = torch.compile(model, backend=used)
    with pytest.raises(fxreduce.UnsupportedError, match="once it has been called"):
        fxreduce.report(compiled)
    for number, x in enumerate(data, 1):
        compiled(x)
        if number < CALLS:
            report = fxreduce.report(compiled)
            assert report.decisions == (f"{number} of {CALLS} calls observed",)
            assert report.removed == ()
            assert [row.name for row in report.sites] == ["relu", "relu#1"]
    report, expected = fxreduce.report(compiled), fxreduce.report(planned(model, data))
    assert len(report.removed) == 1
    assert (report.removed, report.decisions, report.sites) == (
        expected.removed, expected.decisions, expected.sites
    )  # fmt: skip
    assert report.trials == expected.trials
    assert report.operators_after == expected.operators_after
    assert str(report) == str(fxreduce.report(used))
    assert "1 of 2 rectifiers removed" in str(report)


def test_every_model_is_observed_by_itself(inner: Inner) -> None:
    first, second = seeded(Residual).double(), seeded(Residual, 1).double()
    data, x = batches(), batches(8, seed=5)[0]
    used = backend(inner)
    one, two = (torch.compile(each, backend=used) for each in (first, second))
    for batch in data:
        one(batch)
    for batch in data:
        assert torch.equal(second(batch), two(batch))
    for _ in range(2):
        assert_close(planned(first, data)(x), one(x))
        assert_close(planned(second, data)(x), two(x))


def test_other_sizes_of_a_batch_have_the_same_plan(inner: Inner) -> None:
    model, data = seeded(Small).double(), batches(6)
    compiled = torch.compile(model, backend=backend(inner))
    compiled(data[0])
    data = batches(*range(2, 2 + CALLS))
    for x in data:  # torch.compile compiles anew, for any size
        assert torch.equal(model(x), compiled(x))
    expected = planned(model, data)
    for size in (1, 2, 3, 7, 6):
        x = batches(size, seed=5)[0]
        assert_close(expected(x), compiled(x))
    assert set(fxreduce.report(compiled).removed) == set(fxreduce.report(expected).removed)


def test_graphs_of_fixed_sizes_share_what_was_decided(inner: Inner) -> None:
    model, data = seeded(Small).double(), batches()
    compiled = torch.compile(model, backend=backend(inner), dynamic=False)
    few, new = batches(3, 5, seed=3)
    assert torch.equal(model(few), compiled(few))
    for x in data:
        compiled(x)
    expected = planned(model, data)
    for x in (few, new):
        assert_close(expected(x), compiled(x))


def test_graphs_behind_a_break_are_planned_for_by_themselves(inner: Inner) -> None:
    class Broken(Small):
        def forward(self, image: Tensor) -> Tensor:
            x = self.act(self.norm(self.stem(image)))
            torch._dynamo.graph_break()
            return self.head(self.pool(self.act2(self.mix(x))).flatten(1))

    model, data = seeded(Broken).double(), batches()
    compiled = torch.compile(model, backend=backend(inner))
    for x in data:
        assert torch.equal(model(x), compiled(x))
    compiled(data[0])
    report = fxreduce.report(compiled)
    assert [graph.removed for graph in report.graphs] == [("act",), ("act2",)]
    assert report.removed == ("act", "act2")
    assert str(report).startswith("2 graphs: 2 of 2 rectifiers removed")


def test_threads_observe_together_and_decide_once(inner: Inner) -> None:
    model, x = seeded(Residual).double(), batches(8)[0]
    compiled = torch.compile(model, backend=backend(inner))
    expected = model(x)
    compiled(x)
    barrier = Barrier(3)

    def run(_: int) -> list[Tensor]:
        barrier.wait()
        with torch.no_grad():
            return [compiled(x) for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        seen = [each for outputs in pool.map(run, range(3)) for each in outputs]
    reduced = planned(model, [x] * CALLS)(x)
    for each in seen:
        assert min((each - right).abs().max() for right in (expected, reduced)) < 1e-9
    assert sum(torch.equal(each, expected) for each in seen) >= CALLS - 1
    assert_close(reduced, compiled(x))
    assert inner.compilations == 1


def test_weights_that_change_later_keep_the_plan_and_lose_the_fit(inner: Inner) -> None:
    model, data, x = seeded(Inverted).double(), batches(*[32] * CALLS), batches(8, seed=5)[0]
    compiled = torch.compile(model, backend=backend(inner))
    for batch in data:
        compiled(batch)
    plan = fxreduce.analyze(model, data, progress=False).plan(budget=1)
    assert_close(plan.apply(model, verify=False)(x), compiled(x))
    assert plan.weights
    model.head.weight.mul_(1.5)
    with pytest.warns(UserWarning, match="not those that they were fitted to"):
        assert_close(plan.apply(model, verify=False)(x), compiled(x))


def test_where_no_plan_can_be_made_a_warning_says_why_and_merging_goes_on(inner: Inner) -> None:
    model, data = seeded(Small).double(), batches()
    data[1][0, 0, 0, 0] = float("nan")
    compiled = torch.compile(model, backend=backend(inner))
    for x in data[:-1]:
        compiled(x)
    with pytest.warns(UserWarning, match=r"with all its rectifiers: .*finite"):
        compiled(data[-1])
    x = batches(8, seed=5)[0]
    assert_close(model(x), compiled(x))
    assert fxreduce.report(compiled).removed == ()
    assert inner.calls()["batch_norm"] == 0


def test_an_evaluate_that_raises_leaves_the_model_with_all_its_rectifiers(inner: Inner) -> None:
    def evaluate(module: nn.Module) -> float:
        raise ValueError("no such file")

    model, data = seeded(Small).double(), batches()
    budget = fxreduce.MaxDrop(0.1, evaluate)
    compiled = torch.compile(model, backend=backend(inner, budget=budget))
    for x in data[:-1]:
        compiled(x)
    with pytest.warns(UserWarning, match="all its rectifiers: ValueError: no such file"):
        seen = compiled(data[-1])
    assert torch.equal(model(data[-1]), seen)
    for x in batches(8, 8, seed=5):
        assert_close(model(x), compiled(x))
    assert inner.compilations == 1
    assert fxreduce.report(compiled).removed == ()


def test_planning_that_is_interrupted_begins_anew() -> None:
    interrupts = [KeyboardInterrupt()]

    def evaluate(module: nn.Module) -> float:
        if interrupts:
            raise interrupts.pop()
        return 1.0

    model, data = seeded(Small).double(), batches()
    budget = fxreduce.MaxDrop(0.1, evaluate)
    compiled = torch.compile(model, backend=backend(Inner(), budget=budget))
    for x in data[:-1]:
        compiled(x)
    with pytest.raises(KeyboardInterrupt):
        compiled(data[-1])
    for x in data:
        assert torch.equal(model(x), compiled(x))
    compiled(data[0])
    assert set(fxreduce.report(compiled).removed) == {"act", "act2"}


def test_inputs_that_the_model_overwrites_are_kept_as_they_were() -> None:
    class Overwriting(Small):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image.mul_(0.5))

    model, data = seeded(Overwriting).double(), batches()
    compiled = torch.compile(model, backend=backend(Inner()))
    for x in data:
        compiled(x.clone())
    x = batches(8, seed=5)[0]
    assert_close(planned(model, data)(x.clone()), compiled(x))


def test_inputs_and_decisions_are_released_with_the_model() -> None:
    used = backend(Inner())
    model, data = seeded(Small).double(), batches()
    compiled = torch.compile(model, backend=used)
    for x in data[:-1]:
        compiled(x)
    weights = [weakref.ref(each) for each in model.parameters()]
    del model, compiled
    gc.collect()
    assert all(each() is None for each in weights)
    second = seeded(Small, 1).double()
    compiled = torch.compile(second, backend=used)
    for x in data:
        compiled(x)
    assert len(_DECIDED) == 1
    weights = [weakref.ref(each) for each in second.parameters()]
    del second, compiled
    gc.collect()
    assert all(each() is None for each in weights)
    assert len(_DECIDED) == 0


def test_a_model_without_rectifiers_is_merged_at_once(inner: Inner) -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4)).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    assert_close(model(x), torch.compile(model, backend=backend(inner))(x))
    assert inner.compilations == 1


def test_planning_draws_no_random_numbers() -> None:
    model, data = seeded(Small).double(), batches()
    compiled = torch.compile(model, backend=backend(Inner()))
    state = torch.random.get_rng_state()
    for x in [*data, data[0]]:
        compiled(x)
    assert torch.equal(state, torch.random.get_rng_state())


def test_it_is_asked_for_by_options_too(inner: Inner) -> None:
    model, data = seeded(Small).double(), batches()
    options = {"inner": inner, "calibrate": CALLS, "budget": 1, "compensate": "channel"}
    compiled = torch.compile(model, backend="fxreduce", options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in data:
            assert torch.equal(model(x), compiled(x))
    x = batches(8, seed=5)[0]
    assert_close(planned(model, data, compensate="channel")(x), compiled(x))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"calibrate": 0}, fxreduce.UnsupportedError, "at least 1; seen: 0"),
        ({"calibrate": 2.5}, fxreduce.UnsupportedError, r"seen: 2\.5"),
        ({"budget": 3}, fxreduce.UnsupportedError, "budget say how .* calibrate .* is missing"),
        ({"calibrate": 4, "freeze": True}, fxreduce.UnsupportedError, "seen: both"),
        ({"calibrate": 4, "budget": -1}, fxreduce.PlanError, "-1"),
        ({"calibrate": 4, "compensate": "none"}, fxreduce.UnsupportedError, "'none'"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=f"(?s){said}"):
        fxreduce.backend("eager", **options)


def test_backends_are_equal_where_they_decide_alike() -> None:
    make = fxreduce.backend
    assert make("eager", calibrate=4) == make("eager", calibrate=4)
    assert hash(make("eager", calibrate=4)) == hash(make("eager", calibrate=4))
    others = [
        make("eager"),
        make("eager", calibrate=5),
        make("eager", calibrate=4, budget=2),
        make("eager", calibrate=4, include=["a"]),
    ]
    assert make("eager", calibrate=4) not in others
