"""Merging as a pass of inductor's own pipeline, on graphs that hold their weights."""

from __future__ import annotations

import logging
import re
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensor
from torch.fx import Graph, GraphModule, Node

from fxreduce.dynamo.merge import SIZED
from fxreduce.dynamo.template import is_sized
from fxreduce.graph.nodes import SHAPE, attribute
from fxreduce.graph.setting import example_size
from fxreduce.operators.cost import CostModel
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.pipeline import PREPARE, fusion

log = logging.getLogger("fxreduce")


@dataclass(frozen=True)
class PreGradPass:
    """Merges a graph in place, exactly, where its weights are its own.

    Attributes:
        cost: decides which merges pay.
        disable: names of passes that are skipped.
    """

    cost: CostModel
    disable: frozenset[str] = frozenset()

    def __call__(self, graph: Graph) -> None:
        """Rewrite the graph; a line in the log `fxreduce` says what was done."""
        owner = graph.owning_module
        reason = "no module holds its weights" if owner is None else _obstacle(owner)
        if owner is None or reason is not None:
            log.info("the pre-grad pass leaves a graph as it is: %s", reason)
            return
        before = len(graph.nodes)
        with torch.no_grad(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            copied = GraphModule(owner, deepcopy(graph))
            for mine, node in zip(copied.graph.nodes, graph.nodes, strict=True):
                _describe(mine, node.meta.get("example_value"))
            sized = all(map(is_sized, graph.nodes))
            disable = self.disable if sized else self.disable | SIZED
            merged = run_pipeline(copied, (*PREPARE, *fusion(self.cost)), disable=disable)
        if merged.modified:
            _replace(owner, merged.graph_module)
        log.info("the pre-grad pass: %d nodes become %d", before, len(owner.graph.nodes))


def _obstacle(owner: GraphModule) -> str | None:
    """Why the graph is left as it is, if so."""
    attributes = [
        attribute(owner, str(node.target)) for node in owner.graph.find_nodes(op="get_attr")
    ]
    weights = [each for each in attributes if isinstance(each, Tensor)]
    if not weights:
        return (
            "its weights are inputs, which may be others at every call; set "
            'torch._inductor.config.freezing, which makes them constants, or use backend="fxreduce"'
        )
    if any(isinstance(each, FakeTensor) for each in weights):
        return "its weights have no values yet"
    names = {getattr(node.target, "__name__", "") for node in owner.graph.nodes}
    if torch.is_grad_enabled() and any(each.requires_grad for each in weights):
        return "gradients are enabled"
    if "_enter_autocast" in names or any(
        torch.is_autocast_enabled(kind) for kind in {each.device.type for each in weights}
    ):
        return "under autocast a merged operator would round elsewhere than the ones it stands for"
    return None


def _describe(node: Node, value: Any) -> None:
    """Tell passes the shape of the value; they hold for every size."""
    if isinstance(value, Tensor):
        node.meta[SHAPE] = tuple(map(example_size, value.shape))


def _replace(owner: GraphModule, merged: GraphModule) -> None:
    """Put the merged graph in place of the module's own, whose inputs stay."""
    graph = owner.graph
    old = list(graph.nodes)
    inputs = [node for node in old if node.op == "placeholder"]
    env = dict(zip(merged.graph.find_nodes(op="placeholder"), inputs, strict=True))
    with graph.inserting_before(old[-1]):
        for node in merged.graph.nodes:
            if node.op == "output":
                old[-1].args = torch.fx.node.map_arg(node.args, env.__getitem__)
            elif node.op != "placeholder":
                env[node] = graph.node_copy(node, env.__getitem__)
                if node.op in ("get_attr", "call_module"):
                    env[node].target = _adopt(owner, merged, str(node.target))
    for node in reversed(old[:-1]):
        if node.op != "placeholder":
            graph.erase_node(node)
    owner.delete_all_unused_submodules()


def _adopt(owner: GraphModule, merged: GraphModule, path: str) -> str:
    """Give the module what stands at a path of the merged one; returns where it has it."""
    value = attribute(merged, path)
    try:
        if attribute(owner, path) is value:
            return path
    except AttributeError:
        pass
    name = f"fxreduce_{re.sub(r'[^0-9A-Za-z]+', '_', path)}"
    setattr(owner, name, value)
    # Of graphs of its own torch.compile knows where each weight is from, and asks.
    sources = getattr(owner, "_param_name_to_source", None)
    if sources is not None:
        tensors = nn.Module()
        setattr(tensors, name, value)
        held = (*tensors.named_parameters(), *tensors.named_buffers())
        sources.update({each: ConstantSource(each) for each, _ in held})
    return name
