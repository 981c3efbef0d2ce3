"""What `fxreduce schedule` does: one method or several on an experiment, round by round."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import GraphModule

import fxreduce
from fxreduce import schedules
from fxreduce.calibration.ranks import is_first
from fxreduce.cli.commands import as_device
from fxreduce.cli.comparison import Comparison, Outcome
from fxreduce.cli.dense import check_folder, train_dense
from fxreduce.cli.errors import UsageError
from fxreduce.cli.experiment import Experiment, run_forward
from fxreduce.cli.rounds import Point, Points
from fxreduce.cli.saving import MODELS, check_destination, save_model
from fxreduce.cli.schedule_chart import check_plot, save_plot
from fxreduce.recipes.recipe import METHODS, load_recipe, recipe_names
from fxreduce.report.table import table
from fxreduce.schedules.rounds import Round
from fxreduce.training.distributed import process_group

COMPARE = "compare"
SCHEMA = 1  # of the list of recipes
COMMANDS = (*(method.replace("_", "-") for method in METHODS), COMPARE)


def schedule(arguments: argparse.Namespace) -> None:
    """Run a method, or compare several, and print what became of the model."""
    if arguments.recipe == "list":
        print(listing(as_json=arguments.json))
        return
    if arguments.method is None:
        raise UsageError(f"name a METHOD: {', '.join(COMMANDS)}")
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if arguments.out is not None:
        _check_out(arguments)
    with process_group(as_device(arguments.device)) as device:
        experiment = Experiment.load(arguments, device)
        comparison, merged = _compared(experiment, arguments)
        if not is_first():
            return
        written = []
        if arguments.out is not None:
            written.append(save_model(arguments.out, merged, experiment.example()))
        if arguments.plot is not None:
            written.append(save_plot(arguments.plot, comparison))
        print(comparison.to_json() if arguments.json else comparison)
        if written and not arguments.json:
            print("", *written, sep="\n")


def _check_out(arguments: argparse.Namespace) -> None:
    if arguments.method == COMPARE:
        raise UsageError(f"--out takes the network of one method; {COMPARE} runs several")
    check_destination(arguments.out, MODELS)


def _compared(
    experiment: Experiment, arguments: argparse.Namespace
) -> tuple[Comparison, GraphModule]:
    """All outcomes, and the merged network of the last method."""
    alone = arguments.method != COMPARE
    methods = [arguments.method.replace("-", "_")] if alone else arguments.methods
    # What can be refused is refused before the long work begins.
    settings = {method: _settings(method, experiment, alone=alone) for method in methods}
    folder = arguments.checkpoint
    if folder is not None:
        check_folder(folder, experiment)
    epochs, trained = 0, arguments.trained
    if not alone and not trained:  # all methods start from the same weights
        epochs, trained = train_dense(experiment, folder), True
    outcomes = []
    for method in methods:
        points = Points(
            method, experiment, None if folder is None else folder / f"{method}.json", epochs
        )
        result = _run(method, experiment, points, settings[method], arguments, trained=trained)
        merged = result.merged()
        outcomes.append(Outcome.of(method, points.all(), result, fxreduce.report(merged)))
    return Comparison.of(experiment, tuple(outcomes), arguments.seed), merged


def _run(
    method: str,
    experiment: Experiment,
    points: Points,
    settings: Mapping[str, Any],
    arguments: argparse.Namespace,
    *,
    trained: bool,
) -> schedules.ScheduleResult:
    def tell(done: Round) -> None:
        point = points.measure(done)
        if is_first() and not arguments.quiet:
            print(told(point), file=sys.stderr, flush=True)

    keeper = None if arguments.checkpoint is None else arguments.checkpoint / method
    return _function(method)(
        experiment.model.module,
        experiment.calibration(),
        train=experiment.train,
        retrain=experiment.train_again,
        evaluate=points.evaluate,
        forward=run_forward,
        device=experiment.device,
        progress=False if arguments.quiet else None,
        seed=arguments.seed,
        checkpoint=keeper,
        on_round=tell,
        trained=trained,
        **settings,
    )


def told(point: Point) -> str:
    """One line on a round that has ended."""
    return (
        f"{point.method}, round {point.number}: {point.removed} removed, "
        f"{point.validation:.1%} on validation, {point.test:.1%} on test samples, "
        f"{point.faster:.2f} times as fast, {point.epochs} epochs so far"
    )


def _function(method: str) -> Callable[..., schedules.ScheduleResult]:
    function: Callable[..., schedules.ScheduleResult] = getattr(schedules, method)
    return function


def _settings(method: str, experiment: Experiment, *, alone: bool) -> dict[str, Any]:
    """The settings of a method; in a comparison those that it does not have are left out.

    Raises:
        UsageError: It has no such setting.
    """
    known = {
        *inspect.signature(_function(method)).parameters,
        *inspect.signature(schedules.run).parameters,
    }
    settings = experiment.settings_of(method)
    for name in list(settings):
        if name in known:
            continue
        if alone or name in experiment.recipe.methods.get(method, {}):
            raise UsageError(f"{method} has no setting {name}")
        del settings[name]
    if method == "tlc":
        settings["loss"] = experiment.validation_loss()
    return settings


def listing(*, as_json: bool) -> str:
    """All recipes."""
    recipes = [load_recipe(name) for name in recipe_names()]
    if as_json:
        content = [
            {
                "name": each.name,
                "title": each.title,
                "model": each.model,
                "data": each.data,
                "methods": list(each.methods),
                "notes": each.notes,
            }
            for each in recipes
        ]
        return json.dumps({"schema": SCHEMA, "recipes": content}, indent=2)
    rows = [
        (each.name, each.title, ", ".join(each.methods), str(each.training.epochs))
        for each in recipes
    ]
    return table(("recipe", "", "methods", "epochs a training"), rows, left=3)


def methods_of(text: str) -> list[str]:
    """The methods that `text` names, apart by commas.

    Raises:
        argparse.ArgumentTypeError: One is unknown.
    """
    found = [name.strip().replace("-", "_") for name in text.split(",")]
    for name in found:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(COMMANDS[:-1])}")
    return list(dict.fromkeys(found))
