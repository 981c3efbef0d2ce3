"""EGP and NEPENTHE: prune the weights of layers of low entropy, until sites decide nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from fxreduce.errors import ScheduleError
from fxreduce.graph.capture import Model
from fxreduce.graph.feeding import Feed
from fxreduce.operators.affine import Refusal
from fxreduce.planning.measure import SiteStatistics
from fxreduce.schedules.api import Options, run
from fxreduce.schedules.irrelevance import (
    is_certain,
    layer_irrelevance,
    neuron_irrelevance,
    shares,
)
from fxreduce.schedules.pruning import smallest
from fxreduce.schedules.result import ScheduleResult
from fxreduce.schedules.rule import (
    Action,
    Evaluate,
    Rule,
    Scores,
    Stage,
    Train,
    require_share,
    require_variant,
)

IRRELEVANCES = ("layer", "neuron")


@dataclass(frozen=True)
class Egp(Rule):
    """Score: I, the pruning irrelevance of the layer that feeds a site; the lowest is pruned most.

    In a round the smallest weights of each listed layer go by its share. A site whose entropy is 0
    after training decides nothing and goes, and so does one that a layer feeds of which nothing is
    left: the affine map of each channel that it is on the calibration data takes its place, which
    is the diagonal of 0 and 1 for a ReLU.

    The list holds the layers that feed sites: a convolution or linear, through batch-norms; behind
    a sum the block's last one. A layer that feeds several sites is listed once, with the channels
    of all of them. What nothing feeds is never pruned.

    Attributes:
        variant: "paper" pools batches, zeros left out. "code" counts a channel as ON where z > 0,
            averages the entropies of mini-batches, and leaves layers of entropy 0 out of the list.
        part: ζ, the share of the weights left in listed layers that goes in a round.
        irrelevance: "layer", Ĥ · mean |w|; "neuron", the mean of H_i · ‖w_i‖₁ / ‖w_i‖₀.
    """

    variant: str = "paper"
    part: float = 0.5
    irrelevance: str = "layer"
    name: ClassVar[str] = "EGP"

    def __post_init__(self) -> None:
        require_variant(self.variant)
        require_share("part", self.part)
        if self.irrelevance not in IRRELEVANCES:
            raise ScheduleError(
                f"irrelevance is one of {', '.join(map(repr, IRRELEVANCES))}; seen: "
                f"{self.irrelevance!r}"
            )

    def score(self, stage: Stage) -> Scores:
        layers = _layers(stage, stage.measure(entropy=self._entropy))
        return {
            site: self._irrelevance(stage, feed, entropy)
            for feed, sites, entropy in layers
            for site in sites
        }

    def act(self, stage: Stage, scores: Scores) -> Action:
        measured = stage.measure(entropy=self._entropy, moments=True)
        certain = _certain(measured)
        scored, weights = {}, {}
        for feed, sites, entropy in _layers(stage, measured):
            if self.variant == "code" and is_certain(entropy):
                continue
            scored[feed.path] = scores[sites[0]]
            weights[feed.path] = _weight(stage, feed)
        left = {path: int(torch.count_nonzero(weight)) for path, weight in weights.items()}
        counts = shares(scored, left, self.part)
        masks = {
            path: smallest(weights[path], count) for path, count in counts.items() if count > 0
        }
        unfed = _unfed(stage)
        if not masks and not certain:
            return Action(why=f"no weight of a listed layer is left to prune{unfed}")
        after = measured
        if masks:
            trial = stage.pruned(masks)
            after = stage.measure(entropy=self._entropy, moments=True, graph_module=trial)
            # What is at 0 for another reason than its own layer may come back with training.
            certain += [
                name
                for name in _certain(after)
                if name not in certain and _is_whole(stage.feeds[name], masks)
            ]
        told = f"pruned {sum(counts.values())} of {sum(left.values())} weights"
        return Action(
            {name: after[name].affine_fit() for name in certain},
            masks,
            why=f"{told}; entropy 0: {', '.join(certain) or 'none'}{unfed}",
        )

    def finish(self, stage: Stage) -> Action:
        measured = stage.measure(entropy=self._entropy, moments=True)
        certain = _certain(measured)
        maps = {name: measured[name].affine_fit() for name in certain}
        return Action(maps, why=f"entropy 0: {', '.join(certain)}")

    @property
    def _entropy(self) -> str:
        return "paper" if self.variant == "paper" else "egp-code"

    def _irrelevance(self, stage: Stage, feed: Feed, entropy: Tensor) -> float:
        weight = _weight(stage, feed)
        if self.irrelevance == "layer":
            return layer_irrelevance(entropy, weight)
        if len(entropy) % feed.channels:
            raise ScheduleError(
                f"irrelevance='neuron' needs a weight for each channel of a site; {feed.path} has "
                f"{feed.channels} output channels, its sites have {len(entropy)}. Use 'layer'"
            )
        calls = entropy.view(-1, feed.channels).mean(0)  # of a layer that feeds several sites
        return neuron_irrelevance(calls, weight, feed.channel_axis)


class Nepenthe(Egp):
    """NEPENTHE (arXiv 2404.16890): EGP's loop with an irrelevance of neurons; see `Egp`."""

    name: ClassVar[str] = "NEPENTHE"


def egp(
    model: Model,
    loader: Iterable[Any],
    *,
    train: Train,
    evaluate: Evaluate,
    variant: str = "paper",
    part: float = 0.5,
    irrelevance: str = "layer",
    drop: float | None = None,
    **options: Unpack[Options],
) -> ScheduleResult:
    """EGP (ICCV workshops 2023): entropy-guided pruning, 9 rounds unless `rounds` says otherwise.

    Args:
        model, loader, train, evaluate, options: see `fxreduce.schedules.run`.
        variant, part, irrelevance: see `Egp`; `part` is ζ.
        drop: how far the accuracy may fall below the dense one's; None is no limit.
    """
    options.setdefault("rounds", 9)
    rule = Egp(variant, part, irrelevance)
    return run(model, loader, rule, train=train, evaluate=evaluate, drop=drop, **options)


def nepenthe(
    model: Model,
    loader: Iterable[Any],
    *,
    train: Train,
    evaluate: Evaluate,
    variant: str = "paper",
    part: float = 0.5,
    irrelevance: str = "neuron",
    drop: float | None = None,
    **options: Unpack[Options],
) -> ScheduleResult:
    """NEPENTHE (arXiv 2404.16890): as EGP, until the accuracy falls.

    Args:
        model, loader, train, evaluate, options: see `fxreduce.schedules.run`.
        variant: see `Egp`. Nothing is known of NEPENTHE's code: "code" takes entropies and list
            as EGP's code has them.
        part: ζ: 0.5 for ResNet-18, 0.25 for Swin-T, 0.1 for MobileNetV2 in the paper.
        irrelevance: see `Egp`; descriptions of the paper differ.
        drop: θ, how far the accuracy may fall below the dense one's. None is 0.01 for "paper",
            whose value is not published, and no limit for "code"; infinity is no limit.
    """
    limit = 0.01 if drop is None and variant == "paper" else drop
    rule = Nepenthe(variant, part, irrelevance)
    return run(model, loader, rule, train=train, evaluate=evaluate, drop=limit, **options)


def _layers(
    stage: Stage, measured: Mapping[str, SiteStatistics]
) -> list[tuple[Feed, list[str], Tensor]]:
    """The listed layers, each with its sites and the entropies of their channels, in order."""
    sites: dict[Feed, list[str]] = {}
    for name in measured:
        feed = stage.feeds[name]
        if isinstance(feed, Feed):
            sites.setdefault(feed, []).append(name)
    return [
        (feed, names, torch.cat([measured[name].channel_entropy for name in names]))
        for feed, names in sites.items()
    ]


def _unfed(stage: Stage) -> str:
    """In words, which sites have no layer to prune, and why."""
    feeds = ((name, stage.feeds[name]) for name in stage.sites)
    found = [f"{name}: {each.reason}" for name, each in feeds if isinstance(each, Refusal)]
    return f"; without a layer to prune are {'; '.join(found)}" if found else ""


def _certain(measured: Mapping[str, SiteStatistics]) -> list[str]:
    """The sites whose channels are always in one state."""
    return [name for name, site in measured.items() if is_certain(site.channel_entropy)]


def _is_whole(feed: Feed | Refusal, masks: Mapping[str, Tensor]) -> bool:
    """Whether the masks leave nothing of the layer."""
    return isinstance(feed, Feed) and feed.path in masks and not bool(masks[feed.path].any())


def _weight(stage: Stage, feed: Feed) -> Tensor:
    """The layer's weight with what is masked as zeros."""
    weight = stage.graph_module.get_submodule(feed.path).weight
    assert isinstance(weight, Tensor)  # as `Feeding` has found a layer of torch's own
    return weight.detach()
