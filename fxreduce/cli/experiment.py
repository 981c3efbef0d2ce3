"""What `fxreduce schedule` runs: a recipe with what the command line overrules of it, opened."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxreduce import schedules
from fxreduce.cli.commands import parse_budget
from fxreduce.cli.errors import UsageError
from fxreduce.cli.models import LoadedModel, data_format, load_model
from fxreduce.cli.weights import load_weights
from fxreduce.data.dataset import Batches, DataSet, InputBatches, Inputs
from fxreduce.data.names import NAMES, open_data
from fxreduce.recipes.recipe import Recipe, load_recipe
from fxreduce.training.evaluate import Accuracy, CrossEntropy, call
from fxreduce.training.settings import TrainingSettings
from fxreduce.training.trainer import Trainer

DEFAULT_RECIPE = "digits-resnet18"
# Of the command line, and of `TrainingSettings`.
_TRAINING = ("epochs", "rate", "batch_size", "precision", "compile", "workers")
_OPTIONS = ("variant", "drop", "rounds", "moves", "compensate", "rewind", "include", "exclude")


@dataclass(frozen=True)
class Experiment:
    """A model, its data, and how it is trained and judged.

    Attributes:
        recipe: With what the command line has overruled.
        model: On its device.
        data: Opened and split.
        device: Where all is computed.
        trainer: Of the dense network.
        again: The trainer in the rounds.
        slopes: The trainer where rectifiers have slopes to train.
        samples: At most so many training samples are measured on.
        options: Of the command line, for every method.
    """

    recipe: Recipe
    model: LoadedModel
    data: DataSet
    device: torch.device
    trainer: Trainer
    again: Trainer
    slopes: Trainer
    samples: int | None
    options: Mapping[str, Any]

    @classmethod
    def load(cls, arguments: argparse.Namespace, device: torch.device) -> Experiment:
        """Open what the arguments name, the model on the device.

        Raises:
            UsageError: A root, a tokenizer or weights are missing.
            FxReduceError: As of what opens them.
        """
        recipe = _recipe(arguments)
        size = arguments.size or recipe.size
        build = partial(
            load_model, recipe.model, size=size, seed=arguments.seed, width=recipe.width
        )
        name = _data_name(recipe, arguments)
        # The data have to fit the model, and the model to tell their classes apart: it is built
        # again, with as many.
        form = data_format(build(), arguments.tokenizer)
        data = open_data(name, form, seed=arguments.seed)
        model = build(classes=data.classes)
        _load_weights(model, recipe, arguments)
        model.module.to(device)
        progress = False if arguments.quiet else None
        trainer = Trainer(
            data,
            recipe.training,
            device,
            seed=None,
            change_loss=_change_loss,
            begin_epoch=schedules.begin_epoch,
            progress=progress,
        )
        again, slopes = (
            replace(trainer, settings=settings or recipe.training, epochs=[])
            for settings in (recipe.retraining, recipe.slopes)
        )
        given = {name: getattr(arguments, name) for name in _OPTIONS}
        options = {name: value for name, value in given.items() if value is not None}
        if arguments.budget is not None:
            options["budget"] = parse_budget(arguments.budget)
        options |= {"refit": True} if arguments.refit else {}
        options |= {"per_gain": True} if arguments.per_gain else {}
        options |= {"distillation": schedules.Distillation()} if arguments.distil else {}
        return cls(recipe, model, data, device, trainer, again, slopes, arguments.samples, options)

    @property
    def batch_size(self) -> int:
        """Samples of a batch that is measured or judged on."""
        return self.recipe.training.batch_size

    def train(self, module: nn.Module) -> None:
        """Train the dense network in place."""
        self.trainer(module)

    def train_again(self, module: nn.Module) -> None:
        """Train what is left of it in a round, by the settings that it asks for."""
        (self.slopes if _has_slopes(module) else self.again)(module)

    def epochs(self) -> int:
        """How many epochs all trainings so far have taken."""
        return sum(len(each.epochs) for each in (self.trainer, self.again, self.slopes))

    def accuracy(self, part: str) -> Accuracy:
        """The accuracy on a part of the data."""
        return Accuracy(self.data.part(part, self.batch_size), self.device)

    def validation_loss(self) -> CrossEntropy:
        """The loss on the validation part."""
        return CrossEntropy(self.data.part("validation", self.batch_size), self.device)

    def calibration(self) -> InputBatches:
        """Training samples as they are, without labels, to measure rectifiers on."""
        indices = self.data.train[: self.samples]
        return InputBatches(Batches(self.data.source, indices, self.batch_size))

    def example(self) -> Inputs:
        """One sample, on the device."""
        inputs, _ = self.data.source.fetch(self.data.test[:1])
        if isinstance(inputs, dict):
            return {name: value.to(self.device) for name, value in inputs.items()}
        return inputs.to(self.device)

    def settings_of(self, method: str) -> dict[str, Any]:
        """The settings of a method: the recipe's, then the command line's."""
        return {**self.recipe.methods.get(method, {}), **self.options}


def run_forward(module: nn.Module, batch: Inputs) -> Any:
    """Calls a model on a batch."""
    return call(module, batch)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    recipe = load_recipe(arguments.recipe or DEFAULT_RECIPE)
    changes: dict[str, Any] = {}
    if arguments.model is not None:
        changes |= {"model": arguments.model, "width": 1.0, "size": None}
    if arguments.width is not None:
        changes["width"] = arguments.width
    if arguments.data is not None:
        changes["data"] = arguments.data
    training = {name: getattr(arguments, name) for name in _TRAINING}
    training = {name: value for name, value in training.items() if value is not None}
    if training:
        for part in ("training", "slopes", "retraining"):
            if (settings := getattr(recipe, part)) is not None:
                changes[part] = shortened(settings, **training)
    given = {"epochs": arguments.retrain_epochs, "rate": arguments.retrain_rate}
    again = {name: value for name, value in given.items() if value is not None}
    if again:
        known = changes.get("retraining") or changes.get("training")
        known = known or recipe.retraining or recipe.training
        changes["retraining"] = shortened(known, **again)
    if changes:  # what was published does not hold for anything else
        changes |= {"published": (), "pretrained": recipe.pretrained and not arguments.model}
    return replace(recipe, **changes)


def shortened(settings: TrainingSettings, **changes: Any) -> TrainingSettings:
    """The settings with changes; with other epochs, milestones and warm-up keep their places."""
    share = changes.get("epochs", settings.epochs) / settings.epochs
    places = {
        "milestones": tuple(round(share * epoch) for epoch in settings.milestones),
        "warmup": share * settings.warmup,
    }
    return replace(settings, **places, **changes)


def _data_name(recipe: Recipe, arguments: argparse.Namespace) -> str:
    if arguments.root is None:
        if f"{recipe.data}:ROOT" in NAMES:
            raise UsageError(
                f"recipe {recipe.name} trains on {recipe.data}: name the folder that holds it "
                "with --root ROOT"
            )
        return recipe.data
    if f"{recipe.data}:ROOT" not in NAMES:
        raise UsageError(f"--root {arguments.root}: {recipe.data} needs no folder")
    return f"{recipe.data}:{arguments.root}"


def _load_weights(model: LoadedModel, recipe: Recipe, arguments: argparse.Namespace) -> None:
    if arguments.weights is not None:
        left = load_weights(model.module, arguments.weights, other_classes=True)
        if left and not arguments.quiet:
            print(f"note: of other shapes, left random: {', '.join(left)}", file=sys.stderr)
    elif arguments.trained:
        raise UsageError("--trained says that the weights are trained: name them with --weights")
    elif recipe.pretrained and not arguments.quiet:
        print(
            f"note: {recipe.title} was published with weights trained before; --weights FILE "
            "loads some, random ones are trained otherwise",
            file=sys.stderr,
        )


def _has_slopes(module: nn.Module) -> bool:
    return isinstance(schedules.auxiliary_loss(module), Tensor)


def _change_loss(module: nn.Module, loss: Tensor, logits: Tensor, inputs: Inputs) -> Tensor:
    """What a schedule asks of the training: distillation, and the pull of the slopes."""
    if isinstance(inputs, dict):
        loss = schedules.distil(module, loss, logits, **inputs)
    else:
        loss = schedules.distil(module, loss, logits, inputs)
    return loss + schedules.auxiliary_loss(module)
