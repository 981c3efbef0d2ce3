"""Layer Folding: rectifiers learn to be linear, and those that have go (BMVC 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.errors import ScheduleError
from fxreduce.graph.capture import Model
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.rectifiers import find_sites
from fxreduce.passes.linearise import hazard
from fxreduce.passes.observe import evaluator
from fxreduce.planning.budgets import is_number
from fxreduce.schedules.api import Options, run
from fxreduce.schedules.result import ScheduleResult
from fxreduce.schedules.rule import (
    Action,
    Evaluate,
    Rule,
    Scores,
    Stage,
    Train,
    by_score,
    require_count,
    require_variant,
)


class FoldedRectifier(nn.Module):
    """ψ_α(z) = α·z + (1 − α)·ψ(z), with a slope α that is trained from 0.

    Its term of the loss, see `fxreduce.schedules.auxiliary_loss`, is λ·max(0, 1 − α·|α|), which is
    λ·(1 − α²) for slopes between 0 and 1, falls for negative ones too and ends at 1.

    Args:
        rectify: ψ; overwrites nothing.
        pull: λ.
        like: a tensor with the dtype and device of the slope.
    """

    def __init__(self, rectify: Callable[[Tensor], Tensor], pull: float, like: Tensor) -> None:
        super().__init__()
        self.rectify = rectify
        self.pull = pull
        self.slope = nn.Parameter(like.new_zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.slope * z + (1 - self.slope) * self.rectify(z)

    def auxiliary_loss(self) -> Tensor:
        """λ·max(0, 1 − α·|α|), a scalar."""
        return self.pull * (1 - self.slope * self.slope.abs()).clamp(min=0)


@dataclass(frozen=True)
class LayerFolding(Rule):
    """Score: 1 − α, after a training in which every site is a `FoldedRectifier`.

    Sites that are left after it are the plain rectifiers again, which the training of the round
    adapts to. So a round trains twice: with slopes, and without what they folded.

    Attributes:
        variant: "paper" folds the sites of α ≥ `threshold`; "code" the `moves` sites of the
            steepest slopes, as the code of EASIER compares with it.
        pull: λ.
        threshold: of α.
        moves: how many sites the comparison folds in a round.
    """

    variant: str = "paper"
    pull: float = 0.25
    threshold: float = 0.9
    moves: int = 1
    name: ClassVar[str] = "Layer Folding"

    def __post_init__(self) -> None:
        require_variant(self.variant)
        require_count("moves", self.moves)
        for name in ("pull", "threshold"):
            value = getattr(self, name)
            if not is_number(value) or not value >= 0:
                raise ScheduleError(f"{name} is a number, 0 or more; seen: {value!r}")

    def score(self, stage: Stage) -> Scores:
        module, folded = self.parametrised(stage.graph_module, stage.sites)
        stage.train(module)
        return {name: 1 - float(each.slope.detach()) for name, each in folded.items()}

    def act(self, stage: Stage, scores: Scores) -> Action:  # noqa: ARG002
        order = by_score(scores)
        if self.variant == "code":
            chosen = order[: self.moves]
        else:
            chosen = [name for name in order if 1 - scores[name] >= self.threshold]
        if not chosen:
            steepest = f"{1 - scores[order[0]]:.4g}" if order else "none"
            return Action(why=f"no slope has reached {self.threshold:g}; steepest: {steepest}")
        told = ", ".join(f"{name} {1 - scores[name]:.4g}" for name in chosen)
        return Action(dict.fromkeys(chosen), why=f"slopes: {told}")

    def parametrised(
        self, graph_module: GraphModule, sites: Iterable[str]
    ) -> tuple[GraphModule, dict[str, FoldedRectifier]]:
        """The graph with slopes in the place of sites, on the same weights, and the slopes.

        A site whose call overwrites what others read stays as it is.
        """
        recorder, folded, wanted = Recorder(graph_module, "fold"), {}, set(sites)
        like = next(graph_module.parameters(), torch.zeros(()))
        for site in find_sites(recorder.graph_module):
            if site.name not in wanted:
                continue
            if hazard(recorder.aliases, site.rectifier) is not None:
                continue
            rectify = evaluator(recorder.graph_module, site.rectifier)
            module = FoldedRectifier(rectify, self.pull, like)
            why = f"{site.name} gets a slope to train"
            path = f"{site.name.replace('#', '_')}_folded"
            node = recorder.insert(path, module, site.rectifier.input, site.node, why)
            recorder.replace(site.node, node, why)
            folded[site.name] = module
        return recorder.finish(), folded


def layer_folding(
    model: Model,
    loader: Iterable[Any],
    *,
    train: Train,
    evaluate: Evaluate,
    variant: str = "paper",
    pull: float = 0.25,
    threshold: float = 0.9,
    moves: int = 1,
    drop: float | None = None,
    **options: Unpack[Options],
) -> ScheduleResult:
    """Layer Folding (BMVC 2022): train slopes, fold what became linear, train again.

    One round for "paper" unless `rounds` says otherwise. Of the training loop it needs
    `fxreduce.schedules.auxiliary_loss`, or no slope is pulled to 1.

    Args:
        model, loader, train, evaluate, options: see `fxreduce.schedules.run`.
        variant, pull, threshold, moves: see `LayerFolding`; `pull` is λ.
        drop: how far the accuracy may fall below the dense one's; None is no limit.
    """
    if variant == "paper":
        options.setdefault("rounds", 1)
    rule = LayerFolding(variant, pull, threshold, moves)
    return run(model, loader, rule, train=train, evaluate=evaluate, drop=drop, **options)
