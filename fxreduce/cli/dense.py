"""The folder of an experiment: what it is of, and the dense weights that methods share."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxreduce.calibration.ranks import first_rank, is_first
from fxreduce.cli.errors import UsageError
from fxreduce.cli.experiment import Experiment
from fxreduce.cli.weights import load_weights
from fxreduce.errors import first_line
from fxreduce.files import write_atomically

_INDEX, _DENSE = "experiment.json", "dense.safetensors"


def check_folder(folder: Path, experiment: Experiment) -> None:
    """Make the folder, or see that it is of the same experiment.

    Raises:
        UsageError: It cannot be written, or is of another model, data set or training.
    """
    problem = _problem(folder, _identity(experiment)) if is_first() else None
    if (problem := first_rank(problem)) is not None:
        raise UsageError(problem)


def train_dense(experiment: Experiment, folder: Path | None) -> int:
    """Train the experiment's model, or load what an earlier run has trained; returns the epochs."""
    module = experiment.model.module
    path = None if folder is None else folder / _DENSE
    if path is not None and path.is_file():
        load_weights(module, path)
        return experiment.recipe.training.epochs
    experiment.train(module)
    if path is not None and is_first():
        from safetensors.torch import save_file

        state = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
        write_atomically(path, lambda temporary: save_file(state, temporary))
    return experiment.epochs()


def _identity(experiment: Experiment) -> dict[str, Any]:
    recipe = experiment.recipe
    free = ("workers", "compile")  # which change nothing but the time
    parts = {part: getattr(recipe, part) for part in ("training", "slopes", "retraining")}
    trainings = {
        part: {n: v for n, v in asdict(settings).items() if n not in free} if settings else None
        for part, settings in parts.items()
    }
    identity = {
        "model": recipe.model,
        "width": recipe.width,
        "data": experiment.data.name,
        "train": experiment.data.train[:8].tolist(),  # of the split, which depends on the seed
        "samples": experiment.samples,
        **trainings,
    }
    content: dict[str, Any] = json.loads(json.dumps(identity))
    return content


def _problem(folder: Path, identity: dict[str, Any]) -> str | None:
    path = folder / _INDEX
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda p: _write(p, identity))
            return None
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return f"--checkpoint {folder} cannot be used: {first_line(error)}"
    differing = [name for name in identity if found.get(name) != identity[name]]
    if not differing:
        return None
    name = differing[0]
    return (
        f"--checkpoint {folder} is of another experiment: its {name} is {found.get(name)}, here it "
        f"is {identity[name]}. Name another folder, or run with the same settings"
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))
