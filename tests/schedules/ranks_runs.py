"""One rank of a schedule that several processes run together; prints what it decided.

Arguments: rank, number of ranks, a file to meet at, a folder for the checkpoint.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fxreduce import schedules

EPOCHS, BATCH, RATE = 2, 32, 0.1


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(256, 6, generator=generator, dtype=torch.float64)
    rule = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    return points, (points.relu() @ rule).argmax(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double().eval()


def schedule(rank: int, ranks: int, method: str, folder: str | None) -> schedules.ScheduleResult:
    """Each rank has every so many-th sample of each batch, so that all have what one would."""
    points, labels = data()

    def train(module: nn.Module) -> None:
        trained = DistributedDataParallel(module) if ranks > 1 else module
        optimiser = torch.optim.SGD(module.parameters(), RATE, momentum=0.9)
        for epoch in range(EPOCHS):
            schedules.begin_epoch(trained)
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
            for batch in order.split(BATCH):
                mine = batch[rank::ranks]
                loss = functional.cross_entropy(trained(points[mine]), labels[mine])
                optimiser.zero_grad()
                (loss + schedules.auxiliary_loss(trained)).backward()
                optimiser.step()

    def evaluate(module: nn.Module) -> float:
        return float((module(points[rank::ranks]).argmax(1) == labels[rank::ranks]).double().mean())

    mine = [batch[rank::ranks] for batch in points.split(BATCH)]
    found: schedules.ScheduleResult = getattr(schedules, method)(
        network(),
        mine,
        train=train,
        evaluate=evaluate,
        drop=1.0,
        checkpoint=folder,
        progress=False,
        **({"rounds": 3} if method == "egp" else {}),
    )
    return found


def story(result: schedules.ScheduleResult) -> list[object]:
    weights = [tensor.tolist() for tensor in result.model.state_dict().values()]
    return [[[*each.removed, each.accuracy, each.pruned] for each in result.rounds], weights]


def main() -> None:
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    meeting = f"file://{sys.argv[3]}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    found = [
        story(schedule(rank, ranks, "easier", sys.argv[4])),
        story(schedule(rank, ranks, "easier", sys.argv[4])),  # which is done
        story(schedule(rank, ranks, "egp", None)),
    ]
    print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
