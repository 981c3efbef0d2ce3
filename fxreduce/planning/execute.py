"""Carrying decisions out: linearise, merge, check, report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxreduce.graph.capture import capture_record, notes
from fxreduce.graph.count import count_affine
from fxreduce.graph.origins import parameter_map
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.values import name_values
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import CostModel
from fxreduce.passes.base import Check, PassResult, run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import CONSTANTS, PREPARE, fusion
from fxreduce.passes.refit import Refit
from fxreduce.planning.crop import cropping
from fxreduce.planning.example import Example, InputSpec
from fxreduce.planning.origin import ORIGIN, Origin
from fxreduce.planning.payoff import not_paid
from fxreduce.report.graph_view import graph_view
from fxreduce.report.report import REPORT, Report, SiteRow
from fxreduce.report.trial import Trial
from fxreduce.verify import PIPELINE, Checker, doubled


@dataclass(frozen=True)
class Decisions:
    """What shall be done to a model, and what the report shall say of it.

    Attributes:
        cost: decides which exact merges pay.
        sites: the sites to remove, in order.
        maps: the affine maps that take the place of some of them.
        cropped: the values of convolutions to merge approximately, see
            `fxreduce.passes.crop_kernels`.
        weights, reads: fitted weights of merged operators, see `fxreduce.passes.refit.Refit`.
        entropies: entropies in bits, by site.
        lines: what was decided and why.
        refusals: what was refused before.
        importances: of sites, by name.
        trials: what the budget measured.
    """

    cost: CostModel
    sites: tuple[str, ...] = ()
    maps: Mapping[str, ScaleShift] = field(default_factory=dict)
    cropped: tuple[str, ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)
    entropies: Mapping[str, float] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    refusals: tuple[RefusedRewrite, ...] = ()
    importances: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()


@torch.inference_mode(False)  # or merged weights could not be trained
def execute(
    graph_module: GraphModule,
    decisions: Decisions,
    *,
    example: Example | None,
    verify: bool = True,
    disable: Collection[str] = (),
) -> GraphModule:
    """Carry decisions out on a captured graph module, which stays unchanged.

    Args:
        graph_module: captured; where `example` is given its nodes know their shapes.
        example: a batch on which every merge is checked, if `verify` says so.
        disable: names of passes to skip.

    Returns:
        A graph module in eval mode that carries its report.

    Raises:
        EquivalenceError: a merge changed what the unmerged graph computes.
    """

    def checker(reference: GraphModule) -> Checker | None:
        if not verify or example is None:
            return None
        return Checker(reference, example.forward, example.batch)

    removal, merging = Linearise(decisions.sites, decisions.maps), fusion(decisions.cost)
    approximate = cropping(decisions.cropped, decisions.cost)
    check = checker(graph_module)
    prepared = run_pipeline(graph_module, PREPARE, disable=disable, check=check)
    name_values(prepared.graph_module)
    removed = run_pipeline(prepared.graph_module, (removal,), disable=disable)
    exactly = checker(removed.graph_module) if approximate else None
    unmerged = run_pipeline(removed.graph_module, approximate, disable=disable, check=exactly)
    if removed.modified or unmerged.modified:  # else the captured graph still is the reference
        check = checker(unmerged.graph_module)
    merged = merge(unmerged.graph_module, decisions.cost, example, disable=disable, check=check)
    if check is not None and check.is_coarse:
        # Rounding hides a wrong merge; on a float64 copy nothing does.
        precise = doubled(unmerged.graph_module)
        run_pipeline(precise, merging, disable=disable, check=checker(precise))
    refit = PassResult(merged.graph_module)
    if decisions.weights:
        refit = Refit(decisions.weights, decisions.reads).run(merged.graph_module)
    kept = {site.name for site in find_sites(refit.graph_module)}
    readable = run_pipeline(graph_module, CONSTANTS, disable=disable).graph_module
    before, after = count_affine(readable), count_affine(refit.graph_module)
    refusals = (
        *decisions.refusals,
        *prepared.refusals,
        *removed.refusals,
        *unmerged.refusals,
        *merged.refusals,
        *refit.refusals,
    )
    result = refit.graph_module
    inputs = None if example is None else InputSpec.of(example)
    result.meta[ORIGIN] = Origin.of(graph_module, inputs)
    result.meta[PIPELINE] = (*PREPARE, removal, *approximate, *merging)
    result.meta[REPORT] = Report(
        rung=capture_record(graph_module).rung,
        sites=tuple(
            SiteRow(
                site.name,
                site.rectifier.kind,
                site.name not in kept,
                decisions.entropies.get(site.name),
                decisions.importances.get(site.name),
            )
            for site in find_sites(graph_module)
        ),
        removed=tuple(name for name in decisions.sites if name not in kept),
        refusals=tuple(dict.fromkeys(refusals)),
        decisions=(*notes(graph_module), *decisions.lines, *_amplified(check)),
        operators_before=before.operators,
        operators_after=after.operators,
        macs_before=before.multiply_adds,
        macs_after=after.multiply_adds,
        max_error=None if check is None else check.max_rel,
        trials=decisions.trials,
        graph_before=graph_view(graph_module),
        graph_after=graph_view(result),
        parameters=parameter_map(graph_module, result),
    )
    return result.eval()


def _amplified(check: Checker | None) -> tuple[str, ...]:
    """What the report says of a model that is sensitive to rounding."""
    if check is None or check.amplified is None:
        return ()
    line = (
        f"the output moves by {check.amplified:.3g} relative when each weight is rounded anew; "
        f"merges, which moved it by {check.max_rel:.3g}, cannot be told from that"
    )
    return (line,)


def merge(
    unmerged: GraphModule,
    cost: CostModel,
    example: Example | None,
    *,
    disable: Collection[str] = (),
    check: Check | None = None,
) -> PassResult:
    """Merge all that is exact and pays; nothing where the merged graph as a whole does not pay."""
    folded = run_pipeline(unmerged, CONSTANTS, disable=disable, check=check)
    unmerged = folded.graph_module  # whose operators can all be read, and what they cost
    merged = run_pipeline(unmerged, fusion(cost), disable=disable, check=check)
    if example is not None and merged.modified:
        undone = not_paid(unmerged, merged.graph_module, cost, example)
        if undone is not None:
            refusal = RefusedRewrite("the whole graph", undone.reason, "fuse")
            merged = PassResult(unmerged, refusals=(refusal,))
    return replace(merged, edits=(*folded.edits, *merged.edits))
