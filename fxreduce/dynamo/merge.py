"""Merging a graph of torch.compile for one set of weights, in the same way for every other one."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.dynamo.folds import Tensors
from fxreduce.dynamo.lift import Lifted, lift
from fxreduce.dynamo.reduction import Reduction, Removal
from fxreduce.dynamo.template import Template
from fxreduce.graph.count import count_affine
from fxreduce.graph.nodes import label
from fxreduce.graph.origins import parameter_map
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.values import name_values
from fxreduce.operators.affine import for_any_values
from fxreduce.operators.cost import CostModel
from fxreduce.passes.base import PassResult, run_pipeline
from fxreduce.passes.fuse_padded import FusePadded, Pair, match
from fxreduce.passes.pipeline import CONSTANTS, PREPARE, fusion
from fxreduce.report.graph_view import graph_view
from fxreduce.report.report import Report, SiteRow

# It leaves slices that depend on sizes, and no list of functions for all of these.
SIZED = frozenset({FusePadded.name})
DYNAMIC = (
    "sizes are dynamic in this graph, and its border is where they say; compile with dynamic=False"
)
RUNG = "torch.compile"


@dataclass(frozen=True)
class Merged:
    """What merging made of a graph.

    Attributes:
        lifted: the merged graph with the folded weights.
        modified: whether anything was removed or merged.
        report: what was removed, merged and refused.
    """

    lifted: Lifted
    modified: bool
    report: Report


@dataclass(frozen=True)
class Merging:
    """How a graph is merged, whatever its weights.

    Attributes:
        template: the graph.
        cost: decides which merges pay.
        disable: names of passes to skip.
        removal: removes rectifiers before.
    """

    template: Template
    cost: CostModel
    disable: Collection[str] = ()
    removal: Removal | None = None

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
            prepared = run_pipeline(bound, PREPARE, disable=self._disabled)
            name_values(prepared.graph_module)
            reduced = self._reduced(bound, prepared.graph_module)
            template = self.template
            names = {
                id(value): (weight.node, weight.index)
                for weight, value in zip(template.weights, aliases, strict=True)
            }
            lifted = lift(reduced.graph_module, template.inputs, names, template.sized)
            reduced = PassResult(
                reduced.graph_module, reduced.edits, (*prepared.refusals, *reduced.refusals)
            )
            said = report(bound, reduced)
            if self.removal is not None:
                said = self.removal.explain(said)
            return Merged(lifted, reduced.modified, said)

    @property
    def _disabled(self) -> Collection[str]:
        return set(self.disable) if self.template.sized else {*self.disable, *SIZED}

    def _unsized(self, merged: GraphModule) -> Iterator[RefusedRewrite]:
        """What is left apart as sizes are dynamic."""
        if self.template.sized or set(self.disable) >= SIZED:
            return
        for node in merged.graph.nodes:
            if isinstance(match(merged, node), Pair):
                yield RefusedRewrite(label(node), DYNAMIC, FusePadded.name)

    def _reduced(self, bound: GraphModule, prepared: GraphModule) -> PassResult:
        """The graph, reduced in the best way that fits, and merged."""
        ways = [Reduction()] if self.removal is None else list(self.removal(bound))
        refusals = ways[0].refusals
        for way in ways:
            pipeline = (*way.removal, *fusion(self.cost))
            merged = run_pipeline(prepared, pipeline, disable=self._disabled)
            fitted = run_pipeline(merged.graph_module, way.fit)
            edits = (*merged.edits, *fitted.edits)
            if not fitted.refusals:
                break
            refusals = (*refusals, *fitted.refusals)
            refusal = fitted.refusals[0]
            warnings.warn(
                f"in a graph of torch.compile fitted weights are left out, as it merges in another "
                f"way than the plan: {refusal.where}: {refusal.reason}",
                stacklevel=2,
            )
        refusals = (*refusals, *merged.refusals, *self._unsized(merged.graph_module))
        return PassResult(fitted.graph_module, edits, refusals)


@torch.no_grad()
def untouched(
    template: Template,
    weights: Tensors,
    *,
    refusals: tuple[RefusedRewrite, ...] = (),
    decisions: tuple[str, ...] = (),
) -> Report:
    """The report of a graph that runs as it is."""
    with bound_to(template, weights) as (bound, _):
        said = report(bound, PassResult(bound, refusals=refusals))
        return replace(said, decisions=decisions)


def report(bound: GraphModule, reduced: PassResult) -> Report:
    """What was done to a graph; its nodes know their shapes."""
    kept = {site.name for site in find_sites(reduced.graph_module)}
    readable = run_pipeline(bound, CONSTANTS).graph_module
    before, after = count_affine(readable), count_affine(reduced.graph_module)
    rows = [
        SiteRow(site.name, site.rectifier.kind, site.name not in kept) for site in find_sites(bound)
    ]
    return Report(
        rung=RUNG,
        sites=tuple(rows),
        removed=tuple(row.name for row in rows if row.removed),
        refusals=tuple(dict.fromkeys(reduced.refusals)),
        decisions=(),
        operators_before=before.operators,
        operators_after=after.operators,
        macs_before=before.multiply_adds,
        macs_after=after.multiply_adds,
        max_error=None,
        graph_before=graph_view(bound),
        graph_after=graph_view(reduced.graph_module),
        parameters=parameter_map(bound, reduced.graph_module),
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
