"""Merging a graph of torch.compile for one set of weights, in the same way for every other one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.dynamo.folds import Tensors
from fxreduce.dynamo.lift import Lifted, lift
from fxreduce.dynamo.template import Template
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import for_any_values
from fxreduce.operators.cost import CostModel
from fxreduce.passes.base import Pass, run_pipeline
from fxreduce.passes.pipeline import PREPARE, fusion

# It leaves a module whose slices depend on the size of its input, which no list of functions is.
_SIZED = frozenset({"fuse_padded"})


@dataclass(frozen=True)
class Merged:
    """What merging made of a graph.

    Attributes:
        lifted: the merged graph with the folded weights.
        modified: whether anything was removed or merged.
        refusals: what was left undone.
    """

    lifted: Lifted
    modified: bool
    refusals: tuple[RefusedRewrite, ...]


@dataclass(frozen=True)
class Merging:
    """How a graph is merged, whatever its weights.

    Attributes:
        template: the graph.
        cost: decides which merges pay.
        disable: names of passes to skip.
        removals: passes that remove rectifiers before.
    """

    template: Template
    cost: CostModel
    disable: Collection[str] = ()
    removals: tuple[Pass, ...] = ()

    @torch.no_grad()
    def run(self, weights: Tensors) -> Merged:
        """Merge the graph for these weights, which stay as they are.

        What is merged depends on their shapes alone: zeros are taken for numbers like others.
        """
        with (
            torch.inference_mode(False),
            torch.random.fork_rng(devices=[]),  # modules draw weights when they are made
            for_any_values(),
            bound_to(self.template, weights) as (bound, aliases),
        ):
            find_sites(bound)  # names the sites while all of them are there
            disable = {*self.disable, *_SIZED}
            prepared = run_pipeline(bound, PREPARE, disable=disable)
            removed = run_pipeline(prepared.graph_module, self.removals, disable=disable)
            merged = run_pipeline(removed.graph_module, fusion(self.cost), disable=disable)
            template = self.template
            names = {
                id(value): (weight.node, weight.index)
                for weight, value in zip(template.weights, aliases, strict=True)
            }
            lifted = lift(merged.graph_module, template.inputs, names)
            return Merged(
                lifted,
                removed.modified or merged.modified,
                (*prepared.refusals, *removed.refusals, *merged.refusals),
            )


@contextmanager
def bound_to(template: Template, weights: Tensors) -> Iterator[tuple[GraphModule, Tensors]]:
    """The graph with these weights, and the tensors that it has for them.

    Graph modules live until garbage is collected. Weights and their memory must not, so that the
    graph has other tensors of the same memory, and loses it in the end.
    """
    aliases = tuple(map(_alias, weights))
    try:
        yield template.bind(aliases), aliases
    finally:
        for alias in aliases:
            alias.data = torch.empty(0, dtype=alias.dtype, device=alias.device)


def _alias(weight: Tensor) -> Tensor:
    """Another tensor of the same memory; a parameter where the weight is one."""
    alias = weight.detach()
    return nn.Parameter(alias, requires_grad=False) if type(weight) is nn.Parameter else alias
