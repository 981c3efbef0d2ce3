"""What one of several processes plans together with the others; prints it as JSON.

Argument: the name of a function of this module, which is called with the number of this rank and
how many there are.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fxreduce
from fxreduce.planning.sensitivity import Sensitivity
from tests.models import Inverted, Residual, Small, images, seeded

Figures = dict[str, Any]


def batches(count: int = 7, size: int = 24) -> list[Tensor]:
    """The last one is smaller."""
    return [x.double() for x in images(*[size] * (count - 1), size - 5, seed=4)]


def model(make: Callable[[], nn.Module] = Inverted) -> nn.Module:
    return seeded(make).double()


def told(plan: fxreduce.Plan, of: nn.Module) -> Figures:
    """All that a plan says, and the weights that it gives."""
    state = plan.apply(of).state_dict()
    return {
        "sites": plan.sites,
        "stopped": plan.stopped.split(" ->")[0][:40],
        "entropies": plan.entropies,
        "importances": plan.importances,
        "cropped": plan.cropped,
        "trials": [[each.removed, each.accepted] for each in plan.trials],
        "refused": [each.where for each in plan.refusals],
        "weights": {name: each.tolist() for name, each in state.items()},
        "fitted": sorted(plan.weights),
    }


def plans(rank: int = 0, ranks: int = 1) -> Figures:
    """Plans by several budgets, importances and compensations, from a loader that all read."""
    found = {}
    whole = model()
    analysis = fxreduce.analyze(whole, batches(), progress=False)
    found["analysis"] = {
        "batches": analysis.batches,
        "entropies": [site.entropy for site in analysis.sites],
        "counts": {site.name: site.statistics.on.tolist() for site in analysis.sites},
    }
    drop = fxreduce.MaxDrop(0.1, lambda module: agreement(whole, module, rank, ranks))
    for name, options in {
        "refit": {"budget": 3},
        "auto": {"budget": fxreduce.Fidelity(0.8)},
        "drop": {"budget": drop, "compensate": "channel", "candidates": "sites"},
        "sensitivity": {"budget": 2, "importance": "sensitivity", "compensate": "channel"},
        "own": {"budget": 2, "importance": ByBatches(), "compensate": "identity"},
        "speed": {"budget": fxreduce.Speedup(1.2), "refit_scope": "merged"},
    }.items():
        found[name] = told(analysis.plan(**options), whole)
    return found


def agreement(whole: nn.Module, module: nn.Module, rank: int, ranks: int) -> float:
    """On this rank's half of 64 images."""
    (x,) = images(64, seed=9)
    mine = x.double()[rank::ranks]
    with torch.no_grad():
        return float((whole(mine).argmax(1) == module(mine).argmax(1)).double().mean())


class ByBatches(Sensitivity):
    """An importance of one's own that runs batches by itself."""

    def rank(self, stage: Any) -> Any:
        first = next((float(x.sum()) for _, x in stage.calibration.batches("")), 0.0)
        return {
            name: fxreduce.registry.Rank(first + place) for place, name in enumerate(stage.sites)
        }


def few(rank: int = 0, ranks: int = 1) -> Figures:
    """A single batch, and three, of which one rank has no part to measure or to hold out."""
    whole = model(Residual)
    return {
        str(count): told(fxreduce.analyze(whole, batches(count)).plan(budget=1), whole)
        for count in (1, 2, 3)
    }


def parted(rank: int = 0, ranks: int = 1) -> Figures:
    """A DataLoader with a DistributedSampler; alone, the same batches, part after part."""
    whole, data = model(), TensorDataset(torch.cat(images(*[12] * 6, seed=4)).double())

    def loader(number: int) -> DataLoader[Any]:
        sampler = DistributedSampler(data, 2, number, shuffle=True, seed=3)
        return DataLoader(data, batch_size=6, sampler=sampler)

    mine: Any = loader(rank) if ranks > 1 else [*loader(0), *loader(1)]
    analysis = fxreduce.analyze(whole, mine)
    return {"batches": analysis.batches, "plan": told(analysis.plan(budget=3), whole)}


def uneven(rank: int = 0, ranks: int = 1) -> Figures:
    """Lists of its own for each rank, one of them empty; alone, the batches of the other."""
    whole = model()
    mine = [] if rank == 0 and ranks > 1 else batches()
    reduced = fxreduce.apply(whole, iter(mine), budget=2)
    state = {name: each.tolist() for name, each in reduced.state_dict().items()}
    return {"removed": fxreduce.report(reduced).removed, "weights": state}


def main() -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = globals()[sys.argv[1]](rank, ranks)
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
