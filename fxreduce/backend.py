"""The backend for torch.compile, under the name by which it is installed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch.fx import Graph, GraphModule

from fxreduce.dynamo.backend import Backend
from fxreduce.dynamo.inner import Run
from fxreduce.errors import UnsupportedError
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.passes.pipeline import as_disabled
from fxreduce.planning.budgets import Budget
from fxreduce.planning.planner import Options
from fxreduce.planning.profile import PlanFromCalls
from fxreduce.planning.ranking import Importance, SiteImportance


def backend(
    inner: str | Callable[..., Any] = "inductor",
    *,
    cost: str | CostModel = "flops",
    disable: str | Collection[str] = (),
    freeze: bool = False,
    by_value: bool = False,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    calibrate: int | None = None,
    budget: int | float | str | Budget | None = None,
    importance: str | Importance | SiteImportance | None = None,
    compensate: str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    refit_scope: str | None = None,
    candidates: str | None = None,
) -> Backend:
    """A backend for torch.compile that merges affine operators, exactly, before another compiles.

    `torch.compile(model, backend="fxreduce")` is `torch.compile(model, backend=backend())`.

    Weights are folded from the arguments of each call and kept until one of them is another tensor
    or has been written, so that several models of one class, updates in place, `load_state_dict`
    and replaced modules are all right, with one compilation. What is written through `.data` leaves
    no trace that is cheap to see: it needs `by_value`, as do, on accelerators, the statistics that
    a batch-norm in train mode moves while no weight is written. Tensors made in inference mode,
    which count no versions, are always compared by value, and steps of fused optimisers, which
    torch does not count, are counted once a graph has been merged.

    What `fxreduce.fuse` merges is merged, but for padded convolutions behind padded ones where
    sizes are dynamic. Where gradients are enabled and a weight or an input requires them, and under
    autocast, graphs are compiled as they are.

    With `calibrate`, rectifiers are removed, too. The first calls run the graph as it is, and their
    inputs are kept; then a plan is made from them, as `fxreduce.analyze(graph, calls).plan(...)`
    makes it, the graph is reduced and compiled, once. Every model and every graph is observed and
    planned for by itself, so that after a graph break budgets are those of the parts; only graphs
    at other sizes share what was decided. `fxreduce.report(compiled)` tells of it. Where no plan
    can be made, or a budget's or importance's own code raises, a warning says why, and the graph is
    merged with all its rectifiers.

    Args:
        inner: compiles what is merged: a backend that torch.compile knows by name, or a callable
            `(graph_module, example_inputs) -> callable`.
        cost: which exact merges pay, see `fxreduce.fuse`.
        disable: names of passes to skip.
        freeze: make the weights constants of the compiled graph, whether it is merged or not, which
            inductor then prepares for its kernels; calls raise WeightsChangedError when one is
            another tensor or has been written. Graphs that are compiled as they are, with gradients
            or under autocast, are not frozen.
        by_value: compare weights with copies at every call: slower, and twice their memory.
        mode, options: of the inner backend.
        calibrate: how many calls to observe before a plan is made.
        budget, importance, compensate, include, exclude, refit_scope, candidates: how the plan is
            made, see `Analysis.plan`, whose defaults they have.

    Raises:
        UnsupportedError: the inner backend, the cost model, a pass or an option is not known.
        PlanError: the budget does not fit.
    """
    plan = {
        "budget": budget,
        "importance": importance,
        "compensate": compensate,
        "include": include,
        "exclude": exclude,
        "refit_scope": refit_scope,
        "candidates": candidates,
    }
    return Backend.of(
        inner,
        cost=cost,
        disable=disable,
        freeze=freeze,
        by_value=by_value,
        mode=mode,
        options=options,
        profile=_profile(calibrate, cost, disable, plan),
    )


def compile_graph(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """What `torch.compile(model, backend="fxreduce")` calls; see `backend` for the options."""
    given = dict(options or {})
    ours = {name: given.pop(name) for name in ("calibrate", *_PLAN) if name in given}
    if ours:  # which need to know of the cost model and the passes, too
        ours |= {name: given.pop(name) for name in ("cost", "disable") if name in given}
    return backend(**ours)(graph_module, example_inputs, mode=mode, options=given)


def pre_grad_pass(
    *, cost: str | CostModel = "flops", disable: str | Collection[str] = ()
) -> Callable[[Graph], None]:
    """A pass for pipelines of inductor's own, where `backend="fxreduce"` is not wanted.

        torch._inductor.config.freezing = True
        torch._inductor.config.pre_grad_custom_pass = fxreduce.pre_grad_pass()

    It merges exactly, in place, what holds its weights: graphs of torch.compile with inductor's
    freezing, and exported programs under `aoti_compile_and_package`. Weights that are inputs of a
    graph may be others at every call; such graphs stay as they are, and a line in the log
    `fxreduce` says so. Freezing itself does not see weights change, with this pass or without.

    Inductor looks compiled graphs up in its cache behind the pass if
    `torch._inductor.config.pre_grad_pass_timing` is "early", as this pass needs it; else it says
    that it does so all the same.

    Args:
        cost, disable: see `fxreduce.fuse`; where sizes are dynamic, padded convolutions behind
            padded ones stay apart.

    Raises:
        UnsupportedError: the cost model or a pass is not known.
    """
    from fxreduce.dynamo.pre_grad import PreGradPass  # which loads parts of torch that take long

    return PreGradPass(as_cost(cost), as_disabled(disable))


# How a plan is made, and how it is by default: see `Analysis.plan`.
_PLAN: Mapping[str, Any] = {
    "budget": "auto",
    "importance": "entropy",
    "compensate": "refit",
    "include": None,
    "exclude": None,
    "refit_scope": "downstream",
    "candidates": "auto",
}


def _profile(
    calls: int | None,
    cost: str | CostModel,
    disable: str | Collection[str],
    plan: Mapping[str, Any],
) -> PlanFromCalls | None:
    given = {name: value for name, value in plan.items() if value is not None}
    if calls is None:
        if given:
            raise UnsupportedError(
                f"{', '.join(given)} say how rectifiers are removed, for which calibrate tells the "
                "number of calls to observe; it is missing"
            )
        return None
    options = Options.of(**{**_PLAN, **given}, cost=cost, disable=as_disabled(disable))
    return PlanFromCalls(calls, options)
