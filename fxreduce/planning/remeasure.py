"""Measuring the sites of a graph again after each removal, where the removal has moved something.

What a site's statistics were before stays right where no removed site lies before it. The others
are measured from the activations that are kept at the last cut before the removal, see
`fxreduce.planning.entries`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxreduce.calibration.batches import Calibration
from fxreduce.calibration.observer import Observer, require_finite
from fxreduce.calibration.statistics import ChannelStatistics
from fxreduce.graph.cuts import Cut, behind, cuts
from fxreduce.graph.rectifiers import Site, find_sites
from fxreduce.passes.observe import Observe, observers, site_axis
from fxreduce.planning.entries import Entries, Tap, Values, tapped
from fxreduce.planning.measure import SiteStatistics, of_all_ranks
from fxreduce.progress import track


class Measuring:
    """Measures the sites of a graph as it is reduced.

    Args:
        calibration: the batches.
        example: a batch with as many samples as the shapes on the graphs have.
        entropy, moments, axes: see `fxreduce.planning.measure.measure`.
        bound: bytes of activations to keep; None: `fxreduce.planning.entries.BOUND`.
    """

    def __init__(
        self,
        calibration: Calibration,
        example: Any,
        *,
        entropy: str,
        moments: bool,
        axes: Mapping[str, int],
        bound: int | None = None,
    ) -> None:
        self._calibration = calibration
        self._options = (entropy, moments, axes)
        self._scale = _numbers(calibration.first()) / max(1, _numbers(example))
        self._batches = calibration.loader.count()
        self.entries = Entries(bound)
        self._known: dict[str, SiteStatistics] = {}
        self._numbers: list[int] = []  # of the batches that are measured on
        self._stale: set[str] | None = None  # all
        self._changed = 0

    def removed(self, before: GraphModule, names: Collection[str]) -> None:
        """Note that some sites of a graph have been removed, and nothing else was edited."""
        nodes = list(before.graph.nodes)
        sites = {site.name: site.node for site in find_sites(before)}
        first = min(nodes.index(sites[name]) for name in names)
        moved = _behind([sites[name] for name in names])
        stale = {name for name, node in sites.items() if node in moved}
        self._changed = min(first, self._changed)
        self._stale = None if self._stale is None else self._stale | stale
        self.entries.forget_behind(first)

    def measure(
        self, graph_module: GraphModule, wanted: Collection[str]
    ) -> Mapping[str, SiteStatistics]:
        """The statistics of some sites of the graph as it is now, in order of execution.

        Raises:
            CalibrationError: no batch, one that the model does not run on, or values that are not
                finite; batch and site are named.
        """
        sites = [site for site in find_sites(graph_module) if site.name in wanted]
        stale = [site for site in sites if self._stale is None or site.name in self._stale]
        if stale:
            self._known |= self._measured(graph_module, sites, stale)
        self._stale, self._changed = set(), len(graph_module.graph.nodes)
        return {site.name: self._known[site.name] for site in sites}

    def _measured(
        self, graph_module: GraphModule, sites: Sequence[Site], stale: Sequence[Site]
    ) -> dict[str, SiteStatistics]:
        entropy, moments, axes = self._options
        nodes = {site.node for site in sites}
        found = {cut.place: cut for cut in cuts(graph_module)}
        chosen = self.entries.choose(
            graph_module, found.values(), nodes, self._changed, self._scale, self._batches
        )
        axes = {site.name: site_axis(graph_module, site) for site in stale} | dict(axes)
        parts = _Parts(graph_module, found, chosen, stale, moments, axes)
        for number, batch in self._batches_to_run():
            start = self.entries.latest(number, self._changed)
            part = parts.starting(start)
            if start is None:
                self._calibration.run(part.module, number, batch)
            else:
                for values in self.entries.of(start, number):
                    part.run(self._calibration, number, values)
            require_finite(part.observers, number)
            self.entries.keep(number, chosen, part.taps)
        kinds = {site.name: site.rectifier.kind for site in stale}
        merged = of_all_ranks(parts.statistics(), list(kinds), self._calibration)
        return {
            name: SiteStatistics.of(name, kinds[name], axes[name], merged[name], entropy)
            for name in kinds
        }

    def _batches_to_run(self) -> Iterator[tuple[int, Any]]:
        """The batches with their numbers; they are not read where all have entries."""
        description, progress = "measuring entropy", self._calibration.progress
        starts = [self.entries.latest(number, self._changed) for number in self._numbers]
        if starts and None not in starts:
            total = len(self._numbers)
            for number in track(self._numbers, description, total=total, progress=progress):
                yield number, None
            return
        self._numbers.clear()
        for number, batch in self._calibration.batches(description):
            self._numbers.append(number)
            yield number, batch


@dataclass(frozen=True)
class _Part:
    """A graph, or the part of it behind a cut, with observers and taps."""

    module: GraphModule
    inputs: tuple[str, ...]
    observers: tuple[Observer, ...]
    taps: Mapping[int, Sequence[Tap]]

    def run(self, calibration: Calibration, number: int, values: Values) -> None:
        """Run it on the values of a cut."""
        given = [values[name] for name in self.inputs]
        calling = replace(calibration, forward=_call, overwritten=False)
        calling.run(self.module, number, given)


class _Parts:
    """The parts of a graph that batches run through, each made when it is needed."""

    def __init__(
        self,
        graph_module: GraphModule,
        found: Mapping[int, Cut],
        chosen: Sequence[int],
        stale: Sequence[Site],
        moments: bool,
        axes: Mapping[str, int],
    ) -> None:
        self._graph_module, self._last = graph_module, stale[-1].node
        self._found, self._chosen = found, chosen
        self._observe = Observe(moments, tuple(site.name for site in stale), axes)
        self._made: dict[int | None, _Part] = {}

    def starting(self, place: int | None) -> _Part:
        """The part behind a cut; for None the whole graph."""
        if place not in self._made:
            self._made[place] = self._make(place)
        return self._made[place]

    def statistics(self) -> dict[str, ChannelStatistics]:
        """What the observers have seen, over all parts."""
        found: dict[str, ChannelStatistics] = {}
        for part in self._made.values():
            for observer in part.observers:
                if not observer.has_seen:
                    continue
                seen, known = observer.statistics, found.get(observer.site)
                found[observer.site] = seen if known is None else known.merge(seen)
        return found

    def _make(self, place: int | None) -> _Part:
        graph_module, inputs = self._graph_module, tuple[str, ...]()
        if place is not None:
            cut = self._found[place]
            graph_module = behind(graph_module, cut, self._last)
            inputs = tuple(value.name for value in cut.values)
        names = {node.name for node in graph_module.graph.nodes}
        further = [
            cut
            for cut in map(self._found.__getitem__, self._chosen)
            if cut.first.name in names and (place is None or cut.place > place)
        ]
        graph_module, taps = tapped(graph_module, further)
        observed = self._observe.run(graph_module).graph_module
        return _Part(observed, inputs, observers(observed), taps)


def _behind(nodes: Collection[Node]) -> set[Node]:
    """The nodes and all that read, through others too, their values."""
    found, waiting = set[Node](), list(nodes)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting.extend(node.users)
    return found


def _call(module: nn.Module, values: Sequence[Any]) -> Any:
    return module(*values)


def _numbers(batch: Any) -> int:
    """How many numbers a batch's tensors hold."""
    return sum(leaf.numel() for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
