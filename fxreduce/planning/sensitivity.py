"""The importance of a site by what the model's output loses without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.errors import CalibrationError, PlanError
from fxreduce.operators.affine import Refusal
from fxreduce.planning.ranking import Rank, Stage


@dataclass(frozen=True)
class Sensitivity:
    """The relative mean squared change of the output if the site alone goes; label-free.

    sum (y − y')² / sum y² over the calibration batches that are measured on: y is the output of
    the graph as far as it is reduced, y' that of the same graph without the site, compensated as
    the plan compensates. An output of several tensors counts by the mean of their changes. 0: the
    output stays as it is; infinite: without the site it is no longer finite. A site that cannot be
    removed ranks last.

    Cost: for each batch one run of the graph and one for each site, in one pass over the data. Of
    the outputs, those of two runs on one batch are kept at a time. Ranks add up what they have.
    """

    moments: bool = False

    def rank(self, stage: Stage) -> Mapping[str, Rank]:
        trials = {name: stage.without(name) for name in stage.sites}
        modules = {name: each for name, each in trials.items() if not isinstance(each, Refusal)}
        changes = _changes(stage, modules)
        return {
            name: Rank(inf, each.reason) if isinstance(each, Refusal) else Rank(changes[name])
            for name, each in trials.items()
        }


def _changes(stage: Stage, modules: Mapping[str, GraphModule]) -> dict[str, float]:
    """The relative change of each module's output, by the name of the site that it lacks."""
    energy: Tensor | None = None  # float64 [tensors of the output]
    apart: dict[str, Tensor] = {}
    run = stage.calibration.run
    for number, batch in stage.calibration.batches("measuring sensitivity"):
        reference = _tensors(run(stage.graph_module, number, batch))
        squares = torch.stack([_squares(y) for y in reference])
        if not bool(squares.isfinite().all()):
            raise CalibrationError(
                "importance 'sensitivity' compares outputs, so that they must be finite; in batch "
                f"{number} there are NaN or infinity among them. Check that batch, or choose "
                "another importance"
            )
        energy = squares if energy is None else energy + squares
        for name, module in modules.items():
            outputs = _tensors(run(module, number, batch))
            pairs = zip(reference, outputs, strict=True)
            moved = torch.stack([_squares(y.double() - other.double()) for y, other in pairs])
            apart[name] = apart[name] + moved if name in apart else moved
    own = {} if energy is None else {"": energy} | apart
    added = stage.calibration.ranks.added("the sensitivities", own)
    return {name: _relative(added[name], added[""]) for name in modules}


def _tensors(output: Any) -> list[Tensor]:
    found = [
        leaf
        for leaf in pytree.tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if not found:
        raise PlanError(
            "importance 'sensitivity' compares outputs, so that the model must return "
            "floating-point tensors; it returns none. Choose another importance"
        )
    return found


def _squares(values: Tensor) -> Tensor:
    return values.double().square().sum()


def _relative(moved: Tensor, energy: Tensor) -> float:
    """The mean over the output's tensors of the change for each; 0 where 0 stays 0."""
    shares = torch.where(moved == 0, 0.0, moved / energy)
    return float(shares.mean().nan_to_num(nan=inf))
