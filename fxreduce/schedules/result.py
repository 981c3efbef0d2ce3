"""The result of a schedule: every round, the network of the best one, and what it merges to."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

from torch.fx import GraphModule

from fxreduce.errors import ScheduleError
from fxreduce.graph.capture import capture_record
from fxreduce.graph.modules import ChannelAffine
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import CostModel
from fxreduce.passes.pipeline import as_disabled
from fxreduce.planning.example import Example
from fxreduce.planning.execute import Decisions, execute
from fxreduce.report.table import table
from fxreduce.schedules.network import Network, Snapshot
from fxreduce.schedules.rounds import Round

SCHEMA = 1


@dataclass(frozen=True)
class ScheduleResult:
    """What a schedule did.

    Attributes:
        method: the rule's name.
        rounds: all of them, from the dense network on.
        stopped: why the schedule ended.
        stuck: why sites cannot be removed, by name.
    """

    method: str
    rounds: tuple[Round, ...]
    stopped: str
    stuck: Mapping[str, str]
    _base: GraphModule = field(repr=False)
    _best: Snapshot = field(repr=False)
    _last: Snapshot = field(repr=False)
    _example: Example = field(repr=False)
    _cost: CostModel = field(repr=False)

    @property
    def dense(self) -> float:
        """The accuracy of the dense network."""
        return self.rounds[0].accuracy

    @property
    def best(self) -> Round:
        """The last round that is allowed, of those the one with the most sites removed."""
        return next(each for each in reversed(self.rounds) if each.allowed)

    @property
    def last(self) -> Round:
        """The last round, which may be the one that fell too far."""
        return self.rounds[-1]

    @property
    def removed(self) -> tuple[str, ...]:
        """Names of the sites that the best round's network lacks, in order of removal."""
        return tuple(removal.site for removal in self._best.removals)

    @property
    def trainings(self) -> int:
        """How many times the network was trained."""
        return sum(each.trainings for each in self.rounds)

    @cached_property
    def model(self) -> GraphModule:
        """The network of the best round, trainable, unmerged, in eval mode."""
        return Network.restore(self._base, self._best).module.eval()

    @cached_property
    def last_model(self) -> GraphModule:
        """The network of the last round, trainable, unmerged, in eval mode."""
        return Network.restore(self._base, self._last).module.eval()

    def merged(
        self, which: str = "best", *, verify: bool = True, disable: str | Collection[str] = ()
    ) -> GraphModule:
        """The network of a round with all merged that is exact and pays.

        Args:
            which: "best" or "last".
            verify: check every merge against the unmerged graph, in float64.
            disable: names of passes to skip.

        Returns:
            A GraphModule in eval mode; `fxreduce.report` tells what was done.

        Raises:
            EquivalenceError: a merge changed what the unmerged graph computes.
        """
        if which not in ("best", "last"):
            raise ScheduleError(f"which is one of 'best', 'last'; seen: {which!r}")
        snapshot = self._best if which == "best" else self._last
        sites = tuple(removal.site for removal in snapshot.removals)
        reached = (
            each for each in self.rounds if which == "last" or each.number <= self.best.number
        )
        lines = [
            f"{self.method}, round {each.number}: accuracy {each.accuracy:.4g}"
            + (f", removed {', '.join(each.removed)}" if each.removed else "")
            + (f", masked {each.pruned} weights" if each.pruned else "")
            + (f" ({each.why})" if each.why else "")
            for each in reached
        ]
        decisions = Decisions(
            self._cost,
            sites,
            _maps(Network.restore(self._base, snapshot)),
            lines=(*lines, f"stopped: {self.stopped}"),
            refusals=tuple(
                RefusedRewrite(name, reason, "schedule") for name, reason in self.stuck.items()
            ),
        )
        return execute(
            _with_all_sites(self._base, snapshot),
            decisions,
            example=self._example,
            verify=verify,
            disable=as_disabled(disable),
        )

    def table(self) -> str:
        """The rounds as a text table."""
        rows = [
            (
                str(each.number),
                ", ".join(each.removed) or "-",
                str(each.left),
                str(each.pruned),
                f"{each.accuracy:.4g}",
                f"{each.accuracy - self.dense:+.4g}",
                "yes" if each.allowed else "no",
            )
            for each in self.rounds
        ]
        header = ("round", "removed", "sites left", "masked", "accuracy", "change", "counts")
        return f"{table(header, rows, left=2)}\nstopped: {self.stopped}"

    def to_json(self) -> str:
        """The rounds as JSON; `schema` numbers the layout."""
        content = {
            "schema": SCHEMA,
            "method": self.method,
            "captured": capture_record(self._base).rung,
            "dense": self.rounds[0].to_dict()["accuracy"],
            "best": self.best.number,
            "removed": list(self.removed),
            "trainings": self.trainings,
            "stopped": self.stopped,
            "stuck": dict(self.stuck),
            "rounds": [each.to_dict() for each in self.rounds],
        }
        return json.dumps(content, indent=2, allow_nan=False)


def _maps(network: Network) -> dict[str, ScaleShift]:
    """The maps of the network in the place of removed sites, as they were trained."""
    maps = {}
    for path, site in network.map_paths.items():
        module = network.module.get_submodule(path)
        assert isinstance(module, ChannelAffine)  # as `Network.remove` put it there
        maps[site] = ScaleShift(module.weight, module.bias, module.rank)
    return maps


def _with_all_sites(base: GraphModule, snapshot: Snapshot) -> GraphModule:
    """The graph with all its sites and the weights of a snapshot."""
    network = Network(base, deepcopy(base))
    for path in snapshot.biased:
        network.add_bias(path)
    network.rewind(snapshot)
    network.module.meta = dict(base.meta)
    return network.module.eval()
