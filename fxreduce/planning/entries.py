"""Activations kept at the entry of parts of a network, so that what is before runs only once.

After a removal only what lies behind it has changed. With the activations of the calibration
batches kept at some cuts of the graph, measuring again begins at the last cut before the removal.
The cuts are those that save the most work for each byte, if every site is as likely to go next. No
more than `BOUND` bytes are kept, whatever the number of images: batches beyond that run from the
start again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxreduce.graph.cuts import Cut
from fxreduce.graph.nodes import shape_of
from fxreduce.graph.recorder import Recorder
from fxreduce.operators.cost import FlopsCost
from fxreduce.planning.payoff import node_costs

# Bytes of activations that are kept between removals.
BOUND = 1 << 28
# No more cuts than these: each further one saves less.
_MOST_CUTS = 8
_TAPS = "fxreduce_taps"

Values = dict[str, Any]  # of a cut, by the names of its nodes


class Tap(nn.Module):
    """Keeps what it is called with until it is asked for it; without a reader in the graph."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.taken: list[Any] = []

    def forward(self, value: Any) -> None:
        self.taken.append(value)


class Entries:
    """The kept activations of a graph that changes from its end towards its beginning.

    Args:
        bound: bytes to keep at most.
    """

    def __init__(self, bound: int | None = None) -> None:
        self._bound = BOUND if bound is None else bound
        # By the place of the cut and the number of the batch: one for each call of the model.
        self._kept: dict[tuple[int, int], list[Values]] = {}
        self._sizes: dict[tuple[int, int], int] = {}

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return sum(self._sizes.values())

    def forget_behind(self, place: int) -> None:
        """Drop what is computed at or behind a node that has changed."""
        for key in [key for key in self._kept if key[0] > place]:
            del self._kept[key], self._sizes[key]

    def latest(self, number: int, place: int) -> int | None:
        """The last cut, no further than a place, at which a batch has entries."""
        return max((at for at, of in self._kept if of == number and at <= place), default=None)

    def of(self, place: int, number: int) -> list[Values]:
        """The values of a batch at a cut, for each call of the model."""
        return self._kept[place, number]

    def choose(
        self,
        graph_module: GraphModule,
        found: Iterable[Cut],
        sites: Collection[Node],
        changed: int,
        scale: float,
        batches: int,
    ) -> tuple[int, ...]:
        """The places of the cuts to keep from now on, in order.

        Args:
            found: the cuts of the graph.
            sites: the nodes of the sites that may go next.
            changed: the place from which on nodes run again, so that they can be kept.
            scale: how many times as many samples a batch has as the shapes on the graph.
            batches: how many there are.
        """
        known = {place for place, _ in self._kept}
        possible = {cut.place: cut for cut in found if cut.place > changed or cut.place in known}
        if not possible or not sites:
            return ()
        nodes = list(graph_module.graph.nodes)
        cost = node_costs(graph_module, FlopsCost())
        work = torch.tensor([0.0, *(cost[node] for node in nodes)]).double().cumsum(0)
        places = torch.tensor(list(possible))
        sizes = torch.tensor([_bytes_about(cut) * scale for cut in possible.values()]).double()
        if float(sizes.min()) > self._bound:
            return ()
        # Where not all batches fit, as many as do at the smallest cut.
        sizes *= max(1, min(batches, self._bound // max(1, int(sizes.min()))))
        wanted = torch.tensor([place for place, node in enumerate(nodes) if node in sites])
        reached = places.unsqueeze(1) <= wanted
        saved, chosen = torch.zeros(len(wanted)).double(), list[int]()
        room = float(self._bound)
        while len(chosen) < _MOST_CUTS:
            more = (work[places].unsqueeze(1) - saved).clamp(min=0) * reached
            worth = more.sum(1) / sizes.clamp(min=1) * (sizes <= room)
            best = int(worth.argmax())
            if not worth[best] > 0:
                break
            chosen.append(int(places[best]))
            room -= float(sizes[best])
            saved = torch.maximum(saved, work[places[best]] * reached[best])
        return tuple(sorted(chosen))

    def keep(self, number: int, chosen: Collection[int], taps: Mapping[int, Sequence[Tap]]) -> None:
        """Of a batch keep what is at the chosen cuts, and what the taps have if there is room."""
        for key in [(at, of) for at, of in self._kept if of == number and at not in chosen]:
            del self._kept[key], self._sizes[key]
        for place, values in taps.items():
            calls = zip(*(tap.taken for tap in values), strict=True)
            found = [dict(zip((tap.name for tap in values), call, strict=True)) for call in calls]
            for tap in values:
                tap.taken.clear()
            size = _bytes(found)
            if found and self.bytes + size <= self._bound:
                self._kept[place, number], self._sizes[place, number] = found, size


def _bytes_about(cut: Cut) -> int:
    """By the shapes on the graph, four bytes a number."""
    shapes = [shape for node in cut.values if (shape := shape_of(node)) is not None]
    return sum(4 * prod(shape) for shape in shapes)


def _bytes(values: object) -> int:
    """The memory that holds the tensors."""
    leaves = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage() for leaf in leaves}
    return sum(storage.nbytes() for storage in storages.values())


def tapped(
    graph_module: GraphModule, chosen: Sequence[Cut]
) -> tuple[GraphModule, dict[int, list[Tap]]]:
    """The graph with taps at some cuts, and the taps by the places of the cuts.

    Args:
        chosen: cuts of this graph, or of one that it is the part behind a cut of.
    """
    recorder = Recorder(graph_module, _TAPS)
    nodes = {node.name: node for node in recorder.nodes}
    taps: dict[int, list[Tap]] = {}
    for cut in chosen:
        taps[cut.place] = [Tap(value.name) for value in cut.values]
        for tap in taps[cut.place]:
            path = f"{_TAPS}.{cut.place}_{tap.name}"
            recorder.insert(path, tap, nodes[tap.name], nodes[cut.first.name], "it is kept")
    return recorder.finish(), taps
