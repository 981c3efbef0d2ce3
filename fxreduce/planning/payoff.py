"""Whether merging paid: the whole merged graph against the unmerged one."""

from __future__ import annotations

from functools import partial
from math import prod

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
    if isinstance(cost, LatencyCost):
        before, after = (1e3 * each for each in _seconds((unmerged, merged), example))
        unit = "ms by the clock"
    else:
        before, after = (_sum(each, cost) for each in (unmerged, merged))
        unit = cost.name
    if after <= before:
        return None
    return Refusal(
        f"all merges are undone, as together they do not pay: merged {after:.4g}, unmerged "
        f"{before:.4g} ({unit})"
    )


def _seconds(modules: tuple[GraphModule, ...], example: Example) -> list[float]:
    parameter = next(modules[0].parameters(), torch.empty(0))
    calls = [partial(example.run, module) for module in modules]
    return median_latencies(calls, parameter.device, rounds=_ROUNDS)


def _sum(graph_module: GraphModule, cost: CostModel) -> float:
    nodes = graph_module.graph.nodes
    return sum(costs(cost, [each for node in nodes for each in _calls(graph_module, node)]))


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
