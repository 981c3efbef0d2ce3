"""The functions that a user calls; each is documented here and re-exported by `fxreduce`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxreduce.analysis import Analysis
from fxreduce.calibration.batches import Forward
from fxreduce.calibration.loader import Loader
from fxreduce.calibration.ranks import Ranks
from fxreduce.calibration.statistics import require_variant
from fxreduce.dynamo.backend import Backend
from fxreduce.dynamo.find import report_compiled
from fxreduce.errors import PlanError, UnsupportedError
from fxreduce.graph.capture import Model, capture
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.shapes import call
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import PREPARE, as_disabled
from fxreduce.planning.budgets import Budget
from fxreduce.planning.example import Example
from fxreduce.planning.execute import Decisions, execute
from fxreduce.planning.measure import measure
from fxreduce.planning.origin import ORIGIN, Origin
from fxreduce.planning.planner import LOCAL, Options, make_plan, require_compensation
from fxreduce.planning.prepare import prepare
from fxreduce.planning.ranking import Importance, SiteImportance
from fxreduce.planning.shared_cost import shared_cost
from fxreduce.report.report import Report, report_of


def analyze(
    model: Model,
    calib_loader: Iterable[Any],
    *,
    entropy: str = "paper",
    moments: bool = True,
    axes: Mapping[str, int] | None = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Analysis:
    """Measure what every rectifier decides, in one pass over the data; the model is unchanged.

    Under torch.distributed every rank calls it, as it does `apply` and `Analysis.plan`: the ranks
    share the batches, and all get the same; see the guide on several processes.

    Args:
        model: in eval mode.
        calib_loader: batches: a Tensor, a tuple whose first items are the model's inputs, or a
            dictionary by input name; labels are left out.
        entropy: "paper", the pooled entropy of the sign; "easier-code", as EASIER's published
            code has it: zero counts as ON, and mini-batches are averaged; or "egp-code", the same
            with zero as OFF, as EGP's code has it.
        moments: whether to take the moments that compensation needs, too.
        axes: channel axes, counted from the right, of sites where the layout's own is not wanted.
        forward: calls a module on a batch, `(module, batch) -> output`, where the default does not
            fit.
        device: where to run; by default where the model is.
        progress: show a bar; None shows one when stderr is a terminal.

    Raises:
        CaptureError: the model is in train mode or cannot be captured.
        CalibrationError: no batch, one that the model does not run on, or values that are not
            finite; batch and site are named, and of several processes the rank.
        PlanError: an axis is given for a site that the model has not, or from the left.
    """
    require_variant(entropy)
    ranks = Ranks.now()
    with ranks.together():
        loader = Loader(calib_loader, keep=False)
        graph_module, calibration, example = prepare(
            model, loader, forward, device, progress, ranks
        )
        _require_axes(graph_module, axes or {})
        measured = measure(graph_module, calibration, entropy=entropy, moments=moments, axes=axes)
    return Analysis(
        sites=tuple(measured.sites.values()),
        entropy=entropy,
        batches=measured.batches,
        graph_module=graph_module,
        calibration=calibration,
        example=example,
        axes=axes or {},
    )


def apply(
    model: Model,
    calib_loader: Iterable[Any],
    *,
    budget: int | float | str | Budget = "auto",
    importance: str | Importance | SiteImportance = "entropy",
    compensate: str = "refit",
    cost: str | CostModel = "flops",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    refit_scope: str = "downstream",
    candidates: str = "auto",
    exact: bool = False,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    verify: bool = True,
    disable: str | Collection[str] = (),
) -> GraphModule:
    """The model without the rectifiers that decide least, merged; the model is unchanged.

    Under torch.distributed every rank calls it, and all get the same, bit for bit; see `analyze`.

    Args:
        model: in eval mode.
        calib_loader: see `analyze`.
        budget, importance, compensate, cost, include, exclude: see `Analysis.plan`.
        refit_scope, candidates, exact: see `Analysis.plan`.
        forward, device, progress: see `analyze`.
        verify: check every merge against the unmerged graph, in float64, on a few samples.
        disable: names of passes to skip.

    Returns:
        A GraphModule in eval mode with the call signature of `model`; `fxreduce.report` tells what
        was done.

    Raises:
        CaptureError, CalibrationError, PlanError, UnsupportedError: the input does not fit.
        EquivalenceError: a merge changed what the unmerged graph computes.
    """
    # What does not depend on the data is refused before the data are read.
    disabled = as_disabled(disable)
    options = Options.of(
        budget,
        importance,
        cost,
        compensate,
        include,
        exclude,
        refit_scope=refit_scope,
        candidates=candidates,
        exact=exact,
        disable=disabled,
        verify=verify,
    )
    ranks = Ranks.now()
    with ranks.together():
        loader = Loader(calib_loader, keep=True)
        graph_module, calibration, example = prepare(
            model, loader, forward, device, progress, ranks
        )
        plan = make_plan(graph_module, calibration, example, options)
        decisions = replace(plan.decisions, cost=shared_cost(plan.cost, ranks))
        return execute(graph_module, decisions, example=example, verify=verify, disable=disabled)


def fuse(
    graph_module: Model,
    cost: str | CostModel = "flops",
    exact: bool = True,
    *,
    example_inputs: Any = None,
    disable: str | Collection[str] = (),
) -> GraphModule:
    """Merge affine operators, exactly for every input; the model is unchanged.

    Args:
        graph_module: in eval mode.
        cost: which exact merges pay: "flops" or a cost model.
        exact: must be True: only merges that hold for every input exist.
        example_inputs: see `capture`; with it merges that need shapes are made, and all are
            checked.
        disable: names of passes to skip.

    Returns:
        A GraphModule in eval mode; `fxreduce.report` tells what was refused and why.

    Raises:
        CaptureError: the model is in train mode or cannot be captured.
        UnsupportedError: `exact` is not True, or a pass or the cost model is not known.
        EquivalenceError: a merge changed what the unmerged graph computes.
    """
    if not exact:
        raise UnsupportedError("fuse merges exactly; approximate merging needs calibration data")
    disabled = as_disabled(disable)
    captured = capture(graph_module, example_inputs)
    example = None if example_inputs is None else Example(example_inputs, call)
    return execute(captured, Decisions(as_cost(cost)), example=example, disable=disabled)


@torch.inference_mode(False)  # or what takes a rectifier's place could not be trained
def linearize(
    graph_module: Model,
    sites: Iterable[str],
    compensate: str = "identity",
    statistics: Analysis | None = None,
) -> GraphModule:
    """The model with rectifiers replaced, unmerged and trainable; the model is unchanged.

    Args:
        graph_module: in eval mode.
        sites: names of the rectifiers to replace.
        compensate: "identity", or "channel", for which `statistics` are needed.
        statistics: an analysis of the model, with moments.

    Raises:
        PlanError: a name is not a site of the model, or a site cannot be removed.
    """
    captured = capture(graph_module)
    names = [sites] if isinstance(sites, str) else list(sites)
    _require_sites(names, (site.name for site in find_sites(captured)), "the model")
    maps = _maps(names, compensate, statistics)
    result = run_pipeline(captured, (*PREPARE, Linearise(tuple(names), maps)))
    if result.refusals:
        refusal = result.refusals[0]
        raise PlanError(f"{refusal.where} cannot be removed: {refusal.reason}")
    result.graph_module.meta[ORIGIN] = Origin.of(captured)
    return result.graph_module.eval()


def report(made: nn.Module | Backend) -> Report:
    """What was done to a model, what was not and why.

    Args:
        made: what `apply`, `fuse` or `plan.apply` returned, what torch.compile made of a module
            with a backend of fxreduce, or that backend, for all that it has compiled.

    Returns:
        A Report; of what is compiled a CompiledReport, which has one for each graph.

    Raises:
        UnsupportedError: fxreduce did not make it, or it was pickled since; or it has not been
            called, as torch.compile compiles at the first call.
    """
    compiled = None if isinstance(made, GraphModule) else report_compiled(made)
    found = compiled or report_of(made)
    if found is None:
        raise UnsupportedError(
            "a report belongs to what fxreduce.apply, fuse or plan.apply returned, to a backend of "
            "fxreduce for torch.compile, and to a module compiled with one, once it has been "
            f"called; {type(made).__name__} has none"
        )
    return found


def _require_sites(names: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raise PlanError where a name is not among the known ones."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise PlanError(
                f"{owner} has no site {name!r}; its sites are {', '.join(known) or 'none'}"
            )


def _require_axes(graph_module: GraphModule, axes: Mapping[str, int]) -> None:
    """Raise PlanError where an axis is given for no site, or is not counted from the right."""
    _require_sites(axes, (site.name for site in find_sites(graph_module)), "the model")
    for name, axis in axes.items():
        if axis >= 0:
            raise PlanError(
                f"a channel axis is counted from the right: -1 is the last one; seen: {axis} for "
                f"{name}"
            )


def _maps(names: list[str], compensate: str, statistics: Analysis | None) -> dict[str, ScaleShift]:
    require_compensation(compensate, LOCAL)  # refitting comes after merging
    if compensate == "identity":
        return {}
    if statistics is None:
        raise PlanError(
            'compensate="channel" fits maps to calibration data: pass statistics, what '
            "fxreduce.analyze(model, calib_loader) returned"
        )
    _require_sites(names, (site.name for site in statistics.sites), "the analysis")
    return {site.name: site.affine_fit() for site in statistics.sites if site.name in names}
