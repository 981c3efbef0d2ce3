"""fxreduce.verify: do two modules compute the same, and if not, which pass broke it.

Merged weights are rounded to the model's dtype, as its own were. Most models' outputs hardly
notice; some amplify it so much that no tolerance for all models would do. So where an output moves
by more than usual, it is compared with how far the reference's own moves when its weights are
rounded anew.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.errors import CaptureError, EquivalenceError, first_line
from fxreduce.graph.capture import Model, as_module, capture
from fxreduce.graph.compare import difference, is_half, model_dtype, tolerance
from fxreduce.graph.computed import copies_of_computed
from fxreduce.graph.shapes import call, copied
from fxreduce.graph.state import kept_state
from fxreduce.passes.base import Pass, Pipeline, run_pipeline

Forward = Callable[[nn.Module, Any], Any]
T = TypeVar("T", bound=nn.Module)
PIPELINE = "fxreduce.pipeline"  # GraphModule.meta key: the passes that made the graph
# How often the reference's weights are rounded anew, and how many times as far as its output moves
# at most that of a merged graph may: merging rounds other weights, and fewer or more of them.
_DRAWS, _TIMES = 3, 8


@dataclass(frozen=True)
class Equivalence:
    """The outcome of a comparison.

    Attributes:
        max_abs: the largest absolute deviation over all outputs.
        max_rel: the largest deviation relative to the largest value of the same output.
        ok: whether max_rel is within the tolerance.
        tolerance: the relative deviation that was allowed: what rounding explains.
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
        inputs: a tensor, a tuple of positional or a dictionary of keyword arguments; a list of
            these is compared one by one, and the largest deviation counts.
        rtol: the deviation allowed, relative to the largest value of an output; by default what
            rounding to the coarser of the two models' dtypes explains.
        forward: calls a module on `inputs`, where the default does not fit.

    Raises:
        CaptureError: a model is in train mode, or `before` does not run on the inputs.
        EquivalenceError: the outputs differ in structure or shape, or `after` does not run.
    """
    reference, other = as_module(before), as_module(after)
    run = forward or call
    cases = inputs if isinstance(inputs, list) and inputs else [inputs]
    results = [_compare(reference, other, run, case, rtol) for case in cases]
    worst, case = max(zip(results, cases, strict=True), key=lambda pair: pair[0].max_rel)
    if worst.ok or not isinstance(after, GraphModule) or PIPELINE not in after.meta:
        return worst
    return replace(worst, broken_by=_first_broken(before, after.meta[PIPELINE], run, case, rtol))


class Checker:
    """A check for `run_pipeline`: raises where an exact pass changed what the graph computes.

    Attributes:
        max_rel: the largest relative deviation from the reference seen so far.
        amplified: what the reference's own output moves by when its weights are rounded anew, if
            that was asked for, as an output had moved by more than usual.
    """

    def __init__(self, reference: GraphModule, forward: Forward, inputs: Any) -> None:
        self._reference = _Reference(reference, forward, inputs, model_dtype(reference))
        self._forward, self._inputs = forward, inputs
        self.max_rel = 0.0

    @property
    def amplified(self) -> float | None:
        return self._reference.amplified

    @property
    def is_coarse(self) -> bool:
        """Whether rounding explains so much that a float64 copy, which there can be, tells more."""
        if is_half(self._reference.dtype):
            return True
        leaves = pytree.tree_leaves(self._reference.outputs)
        runs_in_double = any(
            isinstance(each, torch.Tensor) and each.dtype == torch.float64 for each in leaves
        )
        single = self._reference.dtype != torch.float64
        return single and runs_in_double and self.amplified is not None

    def __call__(self, graph_module: GraphModule, each: Pass) -> None:
        if not each.exact:
            return
        try:
            outputs = _outputs(graph_module, self._forward, self._inputs)
            apart = difference(self._reference.outputs, outputs).max_rel
        except Exception as error:  # whatever the operators of a broken graph raise
            raise _broken(each, f"now {first_line(error)}") from error
        self.max_rel = max(self.max_rel, apart)
        if not apart <= (allowed := self._reference.allowed(apart)):
            moved = f"the output moved by {apart:.3g} relative, {allowed:.3g} is allowed"
            raise _broken(each, moved)


class _Reference:
    """What is right, and what rounding explains of a deviation from it.

    Args:
        dtype: what weights that are compared with it are rounded to.

    Attributes:
        outputs: in float64 where it runs in that.
        amplified: how far its own output moves when its weights are rounded anew; None before
            `allowed` wanted to know.
    """

    def __init__(
        self, module: nn.Module, forward: Forward, inputs: Any, dtype: torch.dtype
    ) -> None:
        self.outputs = _outputs(module, forward, inputs)
        self.amplified: float | None = None
        self._module, self._forward, self._inputs = module, forward, inputs
        self.dtype = dtype

    def allowed(self, apart: float) -> float:
        """The deviation allowed, where one of `apart` was seen."""
        usual = tolerance(self.dtype)
        if apart <= usual:
            return usual
        if self.amplified is None:
            # A wrong pass may have overwritten the module: `outputs` are no longer its own then.
            own = _outputs(self._module, self._forward, self._inputs)
            self.amplified = max(self._moved(own, seed) for seed in range(_DRAWS))
        return max(usual, _TIMES * self.amplified)

    def _moved(self, own: Any, seed: int) -> float:
        other = _rounded_anew(self._module, self.dtype, seed)
        found = difference(own, _outputs(other, self._forward, self._inputs)).max_rel
        return found if isfinite(found) else 0.0


def _broken(each: Pass, seen: str) -> EquivalenceError:
    return EquivalenceError(
        f"pass {each.name!r} must not change what the graph computes; {seen}. Switch it off with "
        f"disable=({each.name!r},) and report the model"
    )


def _first_broken(
    before: Model, pipeline: Pipeline, forward: Forward, inputs: Any, rtol: float | None
) -> str | None:
    """Run the passes again on the reference; the first whose result computes something else."""
    graph_module, reference = capture(before), as_module(before)
    culprits: list[str] = []

    def check(result: GraphModule, each: Pass) -> None:
        if not culprits and not _same(reference, result, forward, inputs, rtol):
            culprits.append(each.name)

    run_pipeline(graph_module, pipeline, check=check)
    return culprits[0] if culprits else None


def _same(
    before: nn.Module, after: nn.Module, forward: Forward, inputs: Any, rtol: float | None
) -> bool:
    try:
        return _compare(before, after, forward, inputs, rtol).ok
    except EquivalenceError:
        return False


def _compare(
    before: nn.Module, after: nn.Module, forward: Forward, inputs: Any, rtol: float | None
) -> Equivalence:
    coarsest = max(
        (model_dtype(before), model_dtype(after)), key=lambda dtype: torch.finfo(dtype).eps
    )
    try:
        reference = _Reference(before, forward, inputs, coarsest)
    except Exception as error:  # whatever the model's own operators raise
        raise CaptureError(f"before does not run on the inputs: {first_line(error)}") from error
    try:
        outputs = _outputs(after, forward, inputs)
    except Exception as error:
        raise EquivalenceError(
            f"after does not run on inputs that before runs on: {first_line(error)}"
        ) from error
    apart = difference(reference.outputs, outputs)
    allowed = reference.allowed(apart.max_rel) if rtol is None else rtol
    return Equivalence(apart.max_abs, apart.max_rel, apart.max_rel <= allowed, allowed)


def _outputs(module: nn.Module, forward: Forward, inputs: Any) -> Any:
    """The module's outputs in float64; in its own dtype where its graph is bound to one.

    Buffers that it writes are as they were afterwards, so that every run begins with the same.
    """
    precise = module if model_dtype(module) == torch.float64 else doubled(module)
    try:
        return _run(precise, forward, copied(inputs, torch.float64))
    except (RuntimeError, TypeError, AssertionError):
        return _run(module, forward, copied(inputs))


def _run(module: nn.Module, forward: Forward, inputs: Any) -> Any:
    with torch.no_grad(), kept_state(module):
        return copied(forward(module, inputs))  # it may share memory with a buffer


@torch.no_grad()
def doubled(module: T) -> T:
    """A copy in float64 that never holds the weights in their own dtype as well."""
    memo = copies_of_computed(module) | {
        id(each): nn.Parameter(each.double(), each.requires_grad)
        for each in module.parameters()
        if type(each) is nn.Parameter and each.is_floating_point()
    }
    return deepcopy(module, memo).double()


@torch.no_grad()
def _rounded_anew(module: T, dtype: torch.dtype, seed: int) -> T:
    """A copy each of whose weights is off by a unit in the last place of `dtype` at most."""
    generator = torch.Generator().manual_seed(seed)
    copy = deepcopy(module, copies_of_computed(module))
    for each in copy.parameters():
        if each.is_floating_point():
            units = 2 * torch.rand(each.shape, generator=generator, dtype=torch.float64) - 1
            each.mul_((1 + torch.finfo(dtype).eps * units.to(each.device)).to(each.dtype))
    return copy
