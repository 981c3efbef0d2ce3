"""fxreduce.verify: do two modules compute the same, and if not, which pass broke it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.errors import EquivalenceError
from fxreduce.graph.capture import Model, capture
from fxreduce.graph.compare import difference, model_dtype, tolerance
from fxreduce.graph.shapes import call
from fxreduce.passes.base import Pass, Pipeline, run_pipeline

Forward = Callable[[nn.Module, Any], Any]
PIPELINE = "fxreduce.pipeline"  # GraphModule.meta key: the passes that made the graph


@dataclass(frozen=True)
class Equivalence:
    """The outcome of a comparison.

    Attributes:
        max_abs: the largest absolute deviation over all outputs.
        max_rel: the largest deviation relative to the largest value of the same output.
        ok: whether max_rel is within the tolerance.
        tolerance: the relative deviation that was allowed.
        broken_by: the first pass after which the graph computed something else, where it is known.
    """

    max_abs: float
    max_rel: float
    ok: bool
    tolerance: float
    broken_by: str | None = None


def verify(
    before: Model,
    after: Model,
    inputs: Any,
    *,
    rtol: float | None = None,
    forward: Forward | None = None,
) -> Equivalence:
    """Compare what two models compute; neither is changed.

    Both run in float64 where they can, so that what remains is the rounding of the weights.

    Args:
        before: the reference.
        after: what is compared with it. If fxreduce made it, a deviation is traced to its pass.
        inputs: a tensor, a tuple of positional or a dictionary of keyword arguments.
        rtol: the deviation allowed, relative to the largest value of an output; by default what
            the coarser of the two models' dtypes explains.
        forward: calls a module on `inputs`, where the default does not fit.

    Raises:
        EquivalenceError: the outputs differ in structure or shape.
    """
    modules = [
        model.module() if isinstance(model, ExportedProgram) else model for model in (before, after)
    ]
    result = _compare(modules[0], modules[1], forward or call, inputs, rtol)
    if result.ok or not isinstance(after, GraphModule) or PIPELINE not in after.meta:
        return result
    culprit = _first_broken(before, after.meta[PIPELINE], forward or call, inputs, rtol)
    return replace(result, broken_by=culprit)


class Checker:
    """A check for `run_pipeline`: raises where an exact pass changed what the graph computes.

    `max_rel` is the largest relative deviation from the reference seen so far.
    """

    def __init__(self, reference: GraphModule, forward: Forward, inputs: Any) -> None:
        self._expected = _outputs(reference, forward, inputs)
        self._allowed = tolerance(model_dtype(reference))
        self._forward, self._inputs = forward, inputs
        self.max_rel = 0.0

    def __call__(self, graph_module: GraphModule, each: Pass) -> None:
        if not each.exact:
            return
        apart = difference(self._expected, _outputs(graph_module, self._forward, self._inputs))
        self.max_rel = max(self.max_rel, apart.max_rel)
        if not apart.max_rel <= self._allowed:
            raise EquivalenceError(
                f"pass {each.name!r} must not change what the graph computes; the output moved by "
                f"{apart.max_rel:.3g} relative, {self._allowed:.3g} is allowed. Switch it off with "
                f"disable=({each.name!r},) and report the model"
            )


def _first_broken(
    before: Model, pipeline: Pipeline, forward: Forward, inputs: Any, rtol: float | None
) -> str | None:
    """Run the passes again on the reference, each compared with the graph that it was given."""
    graph_module = capture(before)
    culprits: list[str] = []

    def check(result: GraphModule, each: Pass) -> None:
        if not culprits and not _compare(graph_module, result, forward, inputs, rtol).ok:
            culprits.append(each.name)

    run_pipeline(graph_module, pipeline, check=check)
    return culprits[0] if culprits else None


def _compare(
    before: nn.Module, after: nn.Module, forward: Forward, inputs: Any, rtol: float | None
) -> Equivalence:
    coarsest = max(
        (model_dtype(before), model_dtype(after)), key=lambda dtype: torch.finfo(dtype).eps
    )
    allowed = tolerance(coarsest) if rtol is None else rtol
    apart = difference(_outputs(before, forward, inputs), _outputs(after, forward, inputs))
    return Equivalence(apart.max_abs, apart.max_rel, apart.max_rel <= allowed, allowed)


def _outputs(module: nn.Module, forward: Forward, inputs: Any) -> Any:
    """The module's outputs in float64; in its own dtype where its graph is bound to one."""
    with torch.no_grad():
        try:
            return forward(deepcopy(module).double(), _in_double(inputs))
        except (RuntimeError, TypeError, AssertionError):
            return forward(deepcopy(module), inputs)


def _in_double(inputs: Any) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t.clone(), inputs
    )
