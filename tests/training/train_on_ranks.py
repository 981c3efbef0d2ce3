"""Training of a small network whose figures do not depend on how many processes share it.

Run as a script, it is one of them, and the first prints the figures as JSON.
"""

from __future__ import annotations

import json

import torch
from two_classes import network_with_statistics, two_classes

from fxreduce.calibration.ranks import is_first, rank
from fxreduce.training.distributed import process_group
from fxreduce.training.evaluate import Accuracy
from fxreduce.training.settings import TrainingSettings
from fxreduce.training.trainer import Trainer


def trained() -> dict[str, object]:
    """Losses, weights and statistics, the accuracy, and a buffer that held the rank."""
    with process_group(torch.device("cpu")) as device:
        data, network = two_classes(200, torch.float64), network_with_statistics()
        network[0].register_buffer("rank", torch.tensor(float(rank())))
        trainer = Trainer(data, TrainingSettings(epochs=3, batch_size=16, rate=0.05), device)
        trainer(network)
        figures = {
            "losses": [epoch.loss for epoch in trainer.epochs],
            "state": {
                name: value.flatten().tolist()
                for name, value in network.state_dict().items()
                if name != "0.rank"
            },
            "accuracy": Accuracy(data.part("test", 8), device)(network),
            "rank": network[0].rank.item(),
        }
        return figures if is_first() else {}


if __name__ == "__main__" and (found := trained()):
    print(json.dumps(found))
