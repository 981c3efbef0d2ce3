"""What removals save: the sites around which operators can merge, and the cost that this takes off.

A site divides operators that could merge. Removing some sites joins what they divide; what that
saves depends on the operators near them. So each set of sites is rated on its surroundings alone,
with weights that have shapes and no values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.nodes import module_of, operation, shape_of
from fxreduce.graph.rectifiers import Site, find_sites
from fxreduce.graph.structure import is_structural
from fxreduce.operators.affine import Operator
from fxreduce.operators.cost import Candidate, CostModel, costs
from fxreduce.operators.setting import Setting
from fxreduce.passes.linearise import Linearise
from fxreduce.planning.crop import Crops, merge_cropping
from fxreduce.planning.payoff import graph_cost

# A set has at most so many sites, each behind the one before. Larger ones come about step by step.
_LARGEST = 3
# So many operators and sums around its sites a set is rated on.
_RADIUS = 3
# And on no more nodes than these: hundreds of operators may end in one concatenation.
_MOST = 40
# A set must save more than its parts do one by one, by this factor, or it is no set of its own.
_MORE = 1.01

Sites = tuple[str, ...]


class Gains:
    """Rates what removals save, on a graph that is kept merged as they go on.

    Args:
        prepared: with all its rectifiers, its nodes knowing their shapes; unchanged.
        cost: decides which merges pay, and rates what they save.
        disable: names of merging passes to skip.
        crops: which approximate merges are made, too.
    """

    def __init__(
        self,
        prepared: GraphModule,
        cost: CostModel,
        disable: Collection[str] = (),
        crops: Crops | None = None,
    ) -> None:
        tensor = next(prepared.parameters(), torch.empty(0))
        self._cost = _Placed(cost, str(tensor.device))
        self._disable = disable
        self._crops = crops
        self._removed: Sites = ()
        self._known: dict[tuple[Any, ...], float] = {}
        self._merge(deepcopy(prepared).to("meta"))

    def remove(self, sites: Sites) -> None:
        """Go on without these sites."""
        self._removed += sites
        self._merge(Linearise(sites).run(self._graph_module).graph_module)

    def worthwhile(self, candidates: Collection[str]) -> dict[Sites, float]:
        """The sets of candidates that save more together than one by one, with what they save.

        Single sites are among them if they save anything.
        """
        gains: dict[Sites, float] = {}
        sets: list[Sites] = [(name,) for name in self._sites if name in candidates]
        for _ in range(_LARGEST):
            for chosen in sets:
                around = self._around(chosen)
                gain = self._rate(around, ()) - self._rate(around, chosen)
                if gain > _MORE * _best_split(chosen, gains):
                    gains[chosen] = gain
            sets = list(
                dict.fromkeys(
                    tuple(sorted((*chosen, more), key=self._place))
                    for chosen in sets
                    for more in self._behind(chosen[-1])
                    if more in candidates and more not in chosen
                )
            )
        return gains

    def _merge(self, graph_module: GraphModule) -> None:
        self._graph_module = self._merged(graph_module, self._removed)
        self._sites = {site.name: site for site in find_sites(self._graph_module)}
        self._by_node = {site.node: name for name, site in self._sites.items()}
        self._order = {node: at for at, node in enumerate(self._graph_module.graph.nodes)}
        self._joins = {node for node in self._order if _is_joining(self._graph_module, node)}

    def _merged(self, graph_module: GraphModule, removed: Sites) -> GraphModule:
        return merge_cropping(graph_module, self._crops, removed, self._cost, self._disable)

    def _behind(self, name: str) -> list[str]:
        """The sites that only operators divide from this one, which stands before them."""
        found, waiting = list[str](), [self._sites[name].node]
        while waiting:
            for user in waiting.pop().users:
                if user in self._by_node:
                    found.append(self._by_node[user])
                elif user in self._joins and len(user.all_input_nodes) == 1:
                    waiting.append(user)
        return found

    def _around(self, chosen: Sites) -> frozenset[Node]:
        """The sites, and the operators and sums near them that no other site divides from them."""
        found = {self._sites[name].node for name in chosen}
        border = found
        for _ in range(_RADIUS):
            near = {other for node in border for other in (*node.all_input_nodes, *node.users)}
            border = near.intersection(self._joins) - found
            if len(found) + len(border) > _MOST:
                break
            found = found | border
        return frozenset(found)

    def _rate(self, around: frozenset[Node], removed: Sites) -> float:
        """What the surroundings cost once they are merged, the removed sites left out."""
        nodes = sorted(around, key=self._order.__getitem__)
        key = (removed, *(self._signature(node) for node in nodes))
        if key not in self._known:
            part = self._part(nodes, removed)
            merged = self._merged(part, self._removed + removed)
            # Merges that do not pay together are undone.
            self._known[key] = min(graph_cost(each, self._cost) for each in (part, merged))
        return self._known[key]

    def _signature(self, node: Node) -> tuple[Any, ...]:
        """Equal for nodes that cost the same, in graphs of different steps."""
        module = module_of(self._graph_module, node)
        what = str(node.target) if module is None else repr(module)
        return node.name, what, str(node.args), len(node.users), shape_of(node)

    def _part(self, nodes: Sequence[Node], removed: Sites) -> GraphModule:
        """The nodes as a graph of their own: what they read is given, what others read returned."""
        graph, copies, inside = Graph(), dict[Node, Node](), set(nodes)
        outside = {given for node in nodes for given in node.all_input_nodes} - inside
        for node in sorted(outside, key=self._order.__getitem__):
            if node.op == "get_attr":
                copies[node] = graph.node_copy(node)
            else:
                copies[node] = graph.placeholder(node.name)
                copies[node].meta = dict(node.meta)
        for node in nodes:
            name = self._by_node.get(node)
            if name in removed:
                copies[node] = copies[self._sites[name].rectifier.input]
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in nodes if not inside.issuperset(node.users)))
        return GraphModule(self._graph_module, graph)

    def _place(self, name: str) -> int:
        site: Site = self._sites[name]
        return self._order[site.node]


@dataclass(frozen=True)
class _Placed:
    """A cost model to which operators without values seem to be on the device of the model."""

    inner: CostModel
    device: str

    @property
    def name(self) -> str:
        return self.inner.name

    def cost(self, operator: Operator, setting: Setting) -> float:
        return self.costs([(operator, setting)])[0]

    def costs(self, candidates: Sequence[Candidate]) -> list[float]:
        placed = [
            (operator, replace(setting, device=self.device)) for operator, setting in candidates
        ]
        return costs(self.inner, placed)


def _is_joining(graph_module: GraphModule, node: Node) -> bool:
    """Whether operators on both sides of the node may merge: an operator, a sum, or structure."""
    if isinstance(read_affine(graph_module, node), AffineCall):
        return True
    if operation(node) in ("add", "add_", "cat"):
        return True
    return is_structural(graph_module, node)


def _best_split(chosen: Sites, gains: Mapping[Sites, float]) -> float:
    """The most that the sites save in smaller sets, one after the other."""
    best = gains.get(chosen, 0.0)
    for size in range(1, len(chosen)):
        for part in combinations(chosen, size):
            rest = tuple(name for name in chosen if name not in part)
            best = max(best, gains.get(part, 0.0) + _best_split(rest, gains))
    return best
