"""What a whole graph costs: whether merging paid, and how much cheaper a graph has become."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from math import inf, prod

import torch
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.latency import LatencyCost
from fxreduce.graph.nodes import module_of, shape_of
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Refusal, identity, on_meta
from fxreduce.operators.cost import Candidate, CostModel, costs
from fxreduce.operators.setting import Setting
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.pipeline import fusion
from fxreduce.planning.example import Example
from fxreduce.timing import median_latencies

_ROUNDS = 15


def not_paid(
    unmerged: GraphModule, merged: GraphModule, cost: CostModel, example: Example
) -> Refusal | None:
    """Why the merges are to be undone, if they are: the merged graph costs more.

    Args:
        unmerged, merged: graphs that compute the same, their nodes knowing their shapes.
        cost: what rates them: measured latencies by the clock, others by the sum over the graph.
        example: the inputs that both are run on.
    """
    before, after = _rated((unmerged, merged), cost, example)
    if after <= before:
        return None
    unit = "ms by the clock" if isinstance(cost, LatencyCost) else cost.name
    return Refusal(
        f"all merges are undone, as together they do not pay: merged {after:.4g}, unmerged "
        f"{before:.4g} ({unit})"
    )


def speedup(
    original: GraphModule,
    reduced: GraphModule,
    cost: CostModel,
    example: Example,
    disable: Collection[str] = (),
) -> float:
    """How many times as cheap a reduced graph is, once it is merged, as the original unmerged.

    Args:
        original, reduced: unmerged, their nodes knowing their shapes.
        cost: decides which merges are made, and rates both graphs as `not_paid` does.
        example: the inputs that both are run on.
        disable: names of passes that do not merge.
    """
    merged = run_pipeline(reduced, fusion(cost), disable=disable).graph_module
    before, *after = _rated((original, reduced, merged), cost, example)
    # Merges that do not pay together are undone.
    return before / min(after) if min(after) > 0 else inf if before > 0 else 1.0


def _rated(modules: Sequence[GraphModule], cost: CostModel, example: Example) -> list[float]:
    """What each graph costs: in ms by the clock for measured latencies, else in the cost's unit."""
    if isinstance(cost, LatencyCost):
        return [1e3 * each for each in cost.timed(lambda: _seconds(modules, example))]
    return [graph_cost(each, cost) for each in modules]


def _seconds(modules: Sequence[GraphModule], example: Example) -> list[float]:
    parameter = next(modules[0].parameters(), torch.empty(0))
    calls = [partial(example.run, module) for module in modules]
    return median_latencies(calls, parameter.device, rounds=_ROUNDS)


def graph_cost(graph_module: GraphModule, cost: CostModel) -> float:
    """The costs of a graph's operators and of its passes over memory, added up."""
    nodes = graph_module.graph.nodes
    return sum(costs(cost, [each for node in nodes for each in _calls(graph_module, node)]))


def node_costs(graph_module: GraphModule, cost: CostModel) -> dict[Node, float]:
    """What each node of a graph costs."""
    nodes = graph_module.graph.nodes
    return {node: sum(costs(cost, _calls(graph_module, node))) for node in nodes}


def _calls(graph_module: GraphModule, node: Node) -> list[Candidate]:
    """The node's operators; any other node counts as a pass over the largest tensor it touches."""
    call, module = read_affine(graph_module, node), module_of(graph_module, node)
    shapes = [shape_of(each) or () for each in (node, *node.all_input_nodes)]
    if isinstance(module, BorderCorrectedConv):
        return module.calls(Setting(shapes[1]))
    if isinstance(call, AffineCall):
        return [(on_meta(call.operator), setting_of(call))]
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    return [(identity(1, 0), Setting((max(map(prod, shapes)), 1)))]
