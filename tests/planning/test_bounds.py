"""What planning keeps and runs does not grow with the number of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxreduce
from fxreduce import progress
from fxreduce.calibration import batches
from fxreduce.calibration.loader import Loader
from fxreduce.planning import held_out, refit
from fxreduce.planning.budgets import Context, Remove, as_budget
from fxreduce.planning.held_out import HeldOutError
from fxreduce.planning.prepare import prepare
from tests.models import Inverted, Residual, images, seeded


def test_of_many_batches_fewer_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(*[4] * 9)
    _, calibration, _ = prepare(seeded(Residual), Loader(data, keep=True), None, None, False)
    assert len(calibration.hold_out(3).held_out) == 3
    monkeypatch.setattr(batches, "HELD_OUT", 2 * data[0].nbytes)
    parted = calibration.hold_out(3)
    assert len(parted.held_out) == 1
    assert len(list(parted.batches(""))) == 8
    monkeypatch.setattr(batches, "HELD_OUT", 0)
    assert len(calibration.hold_out(3).held_out) == 1


def test_a_fit_runs_as_many_images_as_its_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = seeded(Residual), images(*[32] * 12, pixels=16)
    taken: list[int] = []
    enough = refit._Sweep._enough

    def noted(self: refit._Sweep, *given: int) -> int:
        taken.append(enough(self, *given))
        return taken[-1]

    monkeypatch.setattr(refit._Sweep, "_enough", noted)
    (fresh,) = images(64, pixels=16, seed=5)
    errors = []
    for least, fewest in ((256, 8), (1, 4)):
        taken.clear()
        monkeypatch.setattr(refit, "_IMAGES", least)
        reduced = fxreduce.apply(model, data, budget=1, include=["relu"], progress=False)
        with torch.no_grad():
            errors.append(float((reduced(fresh) - model(fresh)).square().mean()))
        # The classifier has one row of each image, and takes them all.
        assert (min(taken), max(taken)) == (fewest, 8)
    assert errors[1] < 1.5 * errors[0]


def test_outputs_that_are_not_kept_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = seeded(Inverted), seeded(Inverted, 1)
    data = images(*[4] * 6)
    _, calibration, _ = prepare(model, Loader(data, keep=True), None, None, False)
    calibration = calibration.hold_out(3)
    expected = HeldOutError(model, calibration)
    first = expected(other)
    assert expected(other) == first
    monkeypatch.setattr(held_out, "BOUND", 0)
    assert HeldOutError(model, calibration)(other) == first
    assert HeldOutError(model, calibration)(model) == 0


def test_the_bar_counts_the_removals_that_the_budget_asks_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tqdm", reason="it draws the bar")
    fxreduce.apply(seeded(Inverted), images(*[8] * 4), budget=2, progress=True)
    assert "removing rectifiers" in (shown := capsys.readouterr().err)
    assert "0/2 [" in shown  # how often it is drawn again depends on the time that passes
    with progress.counting("nothing", total=None, progress=False) as advance:
        advance(1)
    assert not capsys.readouterr().err


def test_a_combined_budget_asks_for_no_more_than_its_parts() -> None:
    context: Any = Context(None, 8, None, None)  # type: ignore[arg-type]
    judge = (as_budget(5) & fxreduce.EntropyBelow(0.5) & as_budget(0.5)).begin(context)  # type: ignore[operator]
    assert judge.most() == 4
    assert fxreduce.EntropyBelow(0.5).begin(context).most() is None
    assert Remove(3).begin(context).most() == 3
