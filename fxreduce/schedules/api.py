"""Running a schedule: what a user calls, and the keywords that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, TypedDict

import torch

from fxreduce.calibration.batches import Forward
from fxreduce.calibration.loader import Loader
from fxreduce.calibration.ranks import Ranks
from fxreduce.graph.capture import Model
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.planning.budgets import Budget, as_budget
from fxreduce.planning.fingerprint import fingerprint
from fxreduce.planning.planner import selected
from fxreduce.planning.prepare import prepare
from fxreduce.schedules.checkpoint import Checkpoint, describe
from fxreduce.schedules.loop import Distillation, Schedule, Settings
from fxreduce.schedules.network import Network
from fxreduce.schedules.result import ScheduleResult
from fxreduce.schedules.rounds import Round
from fxreduce.schedules.rule import Evaluate, Rule, Train


class Options(TypedDict, total=False):
    """The keywords of `run` that every method takes."""

    retrain: Train | None
    rounds: int | None
    budget: int | float | str | Budget | None
    trained: bool
    compensate: str
    refit: bool
    refit_scope: str
    rewind: str | None
    distillation: Distillation | None
    cost: str | CostModel
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    checkpoint: str | PathLike[str] | None
    forward: Forward | None
    device: torch.device | str | None
    progress: bool | None
    seed: int | None
    on_round: Callable[[Round], None] | None


def run(
    model: Model,
    loader: Iterable[Any],
    rule: Rule,
    *,
    train: Train,
    evaluate: Evaluate,
    retrain: Train | None = None,
    drop: float | None = None,
    rounds: int | None = None,
    budget: int | float | str | Budget | None = None,
    trained: bool = False,
    compensate: str = "identity",
    refit: bool = False,
    refit_scope: str = "downstream",
    rewind: str | None = None,
    distillation: Distillation | None = None,
    cost: str | CostModel = "flops",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    seed: int | None = 0,
    on_round: Callable[[Round], None] | None = None,
) -> ScheduleResult:
    """Train, evaluate, measure, remove, and again, by a method's rule; the model is unchanged.

    Under torch.distributed every rank calls it: statistics and accuracies are those of all ranks
    together, so that decisions are the same, and rank 0 writes the checkpoint.

    Args:
        model: in eval mode, trained or not.
        loader: batches to measure on, see `fxreduce.analyze`; the papers take the training set.
        rule: the method.
        train: trains the module that it is given in place, in full; called once for the dense
            network and once a round. `fxreduce.schedules.training` tells what its loop may add.
        evaluate: the accuracy of a module on validation data, larger is better.
        retrain: trains instead of `train` in the rounds; None is `train`, as published. After a
            refit less will do: a lower rate, or fewer epochs.
        drop: how far the accuracy may fall below the dense one's, in the unit of `evaluate`; the
            round that falls further is the last one and does not count. None is no limit.
        rounds: how many rounds there are at most.
        budget: what else ends the schedule, see `fxreduce.analyze(...).plan`.
        trained: whether the model is trained already, so that the dense network is not.
        compensate: what takes the place of a removed site where the rule leaves that open:
            "identity"; "channel", the affine map of each channel that fits best, which is trained;
            or "refit", the identity with the weights refitted.
        refit: whether weights are fitted to what the network computed before the removal, before
            it is trained again; `evaluate` is called before and after, and they stay where it
            falls.
        refit_scope: see `fxreduce.analyze(...).plan`.
        rewind: to which weights the network goes back before it is trained again: None keeps
            them, "dense" or "initial".
        distillation: training again learns from the dense network, too.
        cost: which merges pay, for budgets and for `ScheduleResult.merged`.
        include, exclude: globs over the names of sites that may go.
        checkpoint: a folder that keeps the schedule after every round. Calling with the same
            folder again goes on from there; a finished one only returns its result.
        forward, device, progress: see `fxreduce.analyze`.
        seed: what random generators start from in every round; None leaves them alone.
        on_round: called with each round when it is complete.

    Raises:
        ScheduleError: settings, training or checkpoint do not fit.
        CaptureError, CalibrationError, PlanError: see `fxreduce.apply`.
    """
    limit = None if budget is None else as_budget(budget)
    settings = Settings(
        drop, rounds, compensate, refit or compensate == "refit", refit_scope, rewind, distillation
    )
    measured = as_cost(cost)
    graph_module, calibration, example = prepare(
        model, Loader(loader, keep=True), forward, device, progress, Ranks.now()
    )
    network = Network.of(graph_module)
    names = selected(network.sites, _patterns(include), _patterns(exclude))
    recipe = {
        "method": rule.name,
        "rule": describe(rule),
        "settings": describe(settings),
        "budget": describe(limit),
        "trained": trained,
        "sites": names,
        "seed": seed,
    }
    keeper = Checkpoint(checkpoint, recipe, fingerprint(network.base))
    schedule = Schedule(
        network, rule, (train, retrain or train), evaluate, settings, names, calibration, example,
        keeper, seed,
    )  # fmt: skip
    schedule.limit(limit, measured)
    finished = schedule.run(trained, on_round)
    return ScheduleResult(
        rule.name,
        tuple(finished.rounds),
        finished.stopped or "",
        dict(finished.stuck),
        network.base,
        finished.snapshots["best"],
        finished.snapshots["last"],
        example,
        measured,
    )


def _patterns(given: Sequence[str] | None) -> Sequence[str] | None:
    return (given,) if isinstance(given, str) else given
