"""What a method decides: which sites score how, what goes in a round, and when it ends.

A rule of one's own is one small class:

    @dataclass(frozen=True)
    class Shallowest(schedules.Rule):
        name = "shallowest first"

        def score(self, stage):
            return {site: place for place, site in enumerate(stage.sites)}

    schedules.run(model, loader, Shallowest(), train=train, evaluate=evaluate)

Its settings are the fields of a dataclass, so that a checkpoint can tell that they have changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.calibration.ranks import mean_over_ranks
from fxreduce.calibration.statistics import ChannelStatistics
from fxreduce.errors import ScheduleError
from fxreduce.graph.feeding import Feed
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import Refusal, ScaleShift
from fxreduce.passes.observe import site_axis
from fxreduce.planning.budgets import is_number
from fxreduce.planning.measure import SiteStatistics, measure
from fxreduce.schedules.network import Maps, Network
from fxreduce.schedules.pruning import mask_weights, settle
from fxreduce.schedules.rounds import Round

Train = Callable[[nn.Module], None]
Evaluate = Callable[[nn.Module], float]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Action:
    """What a round does before it trains.

    Attributes:
        remove: the sites that go, in order, each with the map of its channels that takes its place;
            None leaves that to the schedule's `compensate`, by default the identity.
        masks: 0 or 1 for each weight of layers, by the path of the layer; 0 prunes it.
        frozen: whether training leaves the maps as they are.
        why: what the choice rests on, in words.
    """

    remove: Mapping[str, ScaleShift | None] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: bool = False
    why: str = ""


@dataclass(frozen=True)
class Stage:
    """A schedule as far as it has come, as a rule sees it.

    Attributes:
        sites: names of the sites that may still go, in order of execution.
        rounds: the rounds so far; the last one tells the accuracy as it is now.
        feeds: the layer that feeds each site, or why none does.
        watched: the statistics of the sites on the forwards of the last training epoch, for rules
            that watch it and where there was one.
    """

    network: Network
    sites: tuple[str, ...]
    rounds: tuple[Round, ...]
    calibration: Calibration
    feeds: Mapping[str, Feed | Refusal]
    watched: Mapping[str, ChannelStatistics]
    _train: Callable[[GraphModule], None]
    _evaluate: Evaluate

    @property
    def graph_module(self) -> GraphModule:
        """The network, in eval mode; look at it only."""
        return self.network.module

    def measure(
        self,
        *,
        entropy: str = "paper",
        moments: bool = False,
        graph_module: GraphModule | None = None,
    ) -> dict[str, SiteStatistics]:
        """The statistics of the sites that may go, over the calibration data of all ranks.

        Args:
            entropy: its variant, see `fxreduce.analyze`.
            moments: whether moments are taken, too.
            graph_module: where, if not in the network as it is.

        Raises:
            CalibrationError: see `fxreduce.analyze`.
        """
        module = self.graph_module if graph_module is None else graph_module
        given = {"entropy": entropy, "moments": moments}
        sites = [name for name in self.sites if name in {s.name for s in find_sites(module)}]
        measured = measure(module, self.calibration, sites=sites, **given)  # type: ignore[arg-type]
        return dict(measured.sites)

    def last_epoch(self, entropy: str) -> dict[str, SiteStatistics]:
        """The statistics on the forwards of the last training epoch; else on calibration data."""
        if not set(self.sites) <= set(self.watched):
            return self.measure(entropy=entropy)
        return {
            site.name: SiteStatistics.of(
                site.name,
                site.rectifier.kind,
                site_axis(self.graph_module, site),
                self.watched[site.name],
                entropy,
            )
            for site in find_sites(self.graph_module)
            if site.name in self.sites
        }

    def without(self, maps: Maps) -> GraphModule | Refusal:
        """The network without further sites, on the same weights; or why they cannot go."""
        return self.network.without(maps)

    def pruned(self, masks: Mapping[str, Tensor]) -> GraphModule:
        """A copy of the network with further weights masked."""
        settle(self.graph_module)
        copied = deepcopy(self.graph_module)
        mask_weights(copied, masks)
        return copied.eval()

    def evaluate(self, module: nn.Module) -> float:
        """The user's accuracy of a module, the same on every rank: larger is better."""
        return value_of(self._evaluate, module, "evaluate")

    def train(self, module: GraphModule) -> None:
        """Train a module that shares its weights with the network, in full, in place."""
        self._train(module)


class Rule(ABC):
    """A method. Override `score`; the rest as far as it differs.

    Attributes:
        name: by which results and checkpoints call it.
        moves: how many sites go in a round, by `act` as it is here.
    """

    name: ClassVar[str] = "rule"
    moves: int = 1

    @property
    def watches(self) -> bool:
        """Whether the sites are watched on the forwards of training, see `Stage.watched`."""
        return False

    @abstractmethod
    def score(self, stage: Stage) -> Scores:
        """A number for each site that the rule judges; the lowest goes first.

        Sites that it leaves out stay.
        """

    def act(self, stage: Stage, scores: Scores) -> Action:  # noqa: ARG002
        """What goes in this round: by default so many of the lowest scores."""
        lowest = by_score(scores)[: self.moves]
        told = ", ".join(f"{name} {scores[name]:.4g}" for name in lowest)
        return Action(dict.fromkeys(lowest), why=f"lowest: {told}")

    def stop(self, stage: Stage) -> str | None:  # noqa: ARG002
        """Why there is no further round; None goes on."""
        return None

    def finish(self, stage: Stage) -> Action:  # noqa: ARG002
        """What goes at the very end, without training again: by default nothing."""
        return Action()


def by_score(scores: Scores) -> list[str]:
    """The sites from the lowest score on; of equal ones the first in order of execution."""
    return sorted(scores, key=scores.__getitem__)


def value_of(function: Evaluate, module: nn.Module, name: str) -> float:
    """What the user's function says of a module, averaged over the ranks.

    Raises:
        ScheduleError: it is not a number.
    """
    returned = function(module)
    try:
        value = float(returned)
    except (TypeError, ValueError):
        value = float("nan")
    if value != value:
        raise ScheduleError(
            f"{name}(module) must return a number; it returned {returned!r}. After a training that "
            "diverged, lower the learning rate"
        )
    return mean_over_ranks(value)


def require_count(name: str, value: object) -> None:
    """Raise ScheduleError unless the value is a whole number, 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ScheduleError(f"{name} is a whole number, 1 or more; seen: {value!r}")


def require_share(name: str, value: object) -> None:
    """Raise ScheduleError unless the value lies between 0, left out, and 1."""
    if not is_number(value) or not 0 < value <= 1:
        raise ScheduleError(f"{name} is a share above 0 and up to 1; seen: {value!r}")


def require_variant(variant: str) -> None:
    """Raise ScheduleError unless the variant is "paper" or "code"."""
    if variant not in ("paper", "code"):
        raise ScheduleError(f"variant is one of 'paper', 'code'; seen: {variant!r}")
