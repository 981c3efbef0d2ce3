"""EASIER on the narrow ResNet-18 and the digits, in float64 so that rounding decides nothing.

Run as a script, it is one of several processes, and the first prints what it decided as JSON.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from fxreduce import schedules
from fxreduce.calibration.ranks import is_first
from fxreduce.cli.small_models import small_model
from fxreduce.data.dataset import Batches, InputBatches, Inputs, Source
from fxreduce.data.formats import ImageFormat
from fxreduce.data.names import open_data
from fxreduce.recipes.recipe import load_recipe
from fxreduce.training.distributed import process_group
from fxreduce.training.evaluate import Accuracy
from fxreduce.training.trainer import Trainer


class Double:
    """Samples in float64."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def fetch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        images, labels = self.source.fetch(indices)
        assert isinstance(images, Tensor)
        return images.double(), labels

    def vary(self, indices: Tensor, seed: int) -> tuple[Inputs, Tensor]:
        images, labels = self.source.vary(indices, seed)
        assert isinstance(images, Tensor)
        return images.double(), labels


def scheduled() -> dict[str, object]:
    """Sites and accuracies of two rounds, and their scores."""
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")) as device:
        data = open_data("digits", ImageFormat.of(3, (16, 16)), seed=0)
        data = replace(data, source=Double(data.source))
        torch.manual_seed(0)
        model = small_model("resnet18", data.classes, 0.25).double().eval()
        settings = replace(load_recipe("digits-resnet18").training, epochs=1)
        result = schedules.easier(
            model,
            InputBatches(Batches(data.source, data.train[:256], 64)),
            train=Trainer(data, settings, device, seed=None, progress=False),
            evaluate=Accuracy(data.part("validation", 64), device),
            drop=1.0,
            rounds=2,
            progress=False,
        )
    story = {
        "removed": list(result.removed),
        "accuracies": [each.accuracy for each in result.rounds],
        "scores": [dict(each.scores) for each in result.rounds],
    }
    return story if is_first() else {}


if __name__ == "__main__" and (found := scheduled()):
    print(json.dumps(found))
