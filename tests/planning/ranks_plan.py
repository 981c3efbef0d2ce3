"""What one of several processes plans together with the others; prints it as JSON.

Arguments: names of functions of this module, which are called with the number of this rank and how
many there are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fxreduce
from fxreduce.planning.budgets import Context, Judge
from fxreduce.planning.ranking import Rank
from fxreduce.planning.sensitivity import Sensitivity
from tests.models import Inverted, Residual, images, seeded

Figures = dict[str, Any]
LIMIT = 0.05


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
    }.items():
        found[name] = told(analysis.plan(**options), whole)
    found["own"].pop("importances")  # the mean of what the ranks tell, by batches of theirs
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
        return {name: Rank(first + place) for place, name in enumerate(stage.sites)}


def few(rank: int = 0, ranks: int = 1) -> Figures:
    """A single batch, and three, of which one rank has no part to measure or to hold out."""
    found = {}
    for make, count in ((Residual, 1), (Residual, 3), (wide, 4)):
        whole = model(make)
        plan = fxreduce.analyze(whole, batches(count)).plan(budget=1)
        found[f"{make.__name__} {count}"] = told(plan, whole)
    return found


def wide() -> nn.Module:
    """Has more weights for each output than there are samples."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 4))


def parted(rank: int = 0, ranks: int = 1) -> Figures:
    """A DataLoader with a DistributedSampler; alone, the same batches, part after part."""
    whole, data = model(), TensorDataset(torch.cat(images(*[12] * 6, seed=4)).double())

    def loader(number: int) -> DataLoader[Any]:
        sampler = DistributedSampler(data, 2, number, shuffle=True, seed=3)
        return DataLoader(data, batch_size=12, sampler=sampler)

    mine: Any = loader(rank) if ranks > 1 else [*loader(0), *loader(1)]
    analysis = fxreduce.analyze(whole, mine)
    return {"batches": analysis.batches, "plan": told(analysis.plan(budget=3), whole)}


def uneven(rank: int = 0, ranks: int = 1) -> Figures:
    """Lists of its own for each rank, one of them empty; alone, the batches of the other."""
    whole = model()
    mine = [] if rank == 0 and ranks > 1 else batches(6)
    reduced = fxreduce.apply(whole, iter(mine), budget=2)
    state = {name: each.tolist() for name, each in reduced.state_dict().items()}
    return {"removed": fxreduce.report(reduced).removed, "weights": state}


@dataclass(frozen=True)
class ByOutputs:
    """A budget of one's own that bounds the outputs' squared error."""

    def begin(self, context: Context) -> Judge:
        return _ErrorJudge(context, torch.cat(context.outputs(context.original)))


@dataclass(frozen=True)
class _ErrorJudge(Judge):
    context: Context
    expected: Tensor

    def after(self, candidate: GraphModule) -> str | None:
        seen = torch.cat(self.context.outputs(candidate))
        error = float((seen - self.expected).square().sum() / self.expected.square().sum())
        return None if error < LIMIT else f"the error is {error:.6f}"


def own_budget(rank: int = 0, ranks: int = 1) -> Figures:
    """What a budget of one's own compares are the outputs of all ranks."""
    whole = model()
    plan = fxreduce.analyze(whole, batches()).plan(budget=ByOutputs(), compensate="identity")
    return {"reasons": [each.reason for each in plan.refusals], **told(plan, whole)}


def failures(rank: int, ranks: int) -> list[Figures]:
    """What each of several tasks raises on this rank, and a task that then succeeds."""
    return [outcome(task, rank) for task in (*TASKS, fine)]


def outcome(task: Callable[[int], object], rank: int) -> Figures:
    try:
        return {"returned": task(rank)}
    except fxreduce.PlanInterrupted as error:
        return {"raised": "PlanInterrupted", "sites": error.plan.sites}
    except BaseException as error:
        notes = getattr(error, "__notes__", [])
        return {"raised": type(error).__name__, "message": str(error), "notes": notes}


def not_finite(rank: int) -> object:
    """Batch 3 is the second one of rank 1."""
    given = batches()
    given[3][0] = torch.nan
    return fxreduce.analyze(model(), given)


def no_batches(rank: int) -> object:
    return fxreduce.analyze(model(), [])


def no_such_site(rank: int) -> object:
    return fxreduce.apply(model(), batches(3), include=["nothing.*"])


def other_weights(rank: int) -> object:
    whole = model()
    with torch.no_grad():
        whole.head.weight += rank
    return fxreduce.analyze(whole, batches(3))


def other_budgets(rank: int) -> object:
    return fxreduce.apply(model(), batches(3), budget=1 + rank, compensate="channel")


def broken(rank: int) -> object:
    def evaluate(module: nn.Module) -> float:
        if rank == 1:
            raise ValueError("no labels here")
        return 1.0

    return fxreduce.apply(model(), batches(3), budget=fxreduce.MaxDrop(0.1, evaluate))


def impatient(rank: int, interrupt: Callable[[], None]) -> object:
    """Interrupted on rank 1 at the third look, when a removal has been accepted."""
    looks = 0

    def evaluate(module: nn.Module) -> float:
        nonlocal looks
        looks += 1
        if looks == 3 and rank == 1:
            interrupt()
        return 1.0

    budget = fxreduce.MaxDrop(0.1, evaluate)
    options = {"compensate": "channel", "candidates": "sites"}
    return fxreduce.analyze(model(), batches(3)).plan(budget=budget, **options).sites


def interrupted(rank: int) -> object:
    def interrupt() -> None:
        raise KeyboardInterrupt

    return impatient(rank, interrupt)


def signalled(rank: int) -> object:
    return impatient(rank, lambda: signal.raise_signal(signal.SIGINT))


def fine(rank: int) -> object:
    return fxreduce.analyze(model(), batches(3)).plan(budget=1, compensate="channel").sites


TASKS = (
    not_finite,
    no_batches,
    no_such_site,
    other_weights,
    other_budgets,
    broken,
    interrupted,
    signalled,
)


def main() -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {task: globals()[task](rank, ranks) for task in sys.argv[1:]}
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
