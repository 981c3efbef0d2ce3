"""Compiling one graph of torch.compile: whether it is merged, and what then runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch.fx import GraphModule

from fxreduce.dynamo.compiled import Folding, Frozen
from fxreduce.dynamo.folds import Folds, State, Tensors
from fxreduce.dynamo.inner import Inner, Run
from fxreduce.dynamo.late import Late, plain
from fxreduce.dynamo.lift import Lifted, bake
from fxreduce.dynamo.merge import Merging, bound_to
from fxreduce.dynamo.numbers import find_numbers
from fxreduce.dynamo.optimisers import count_fused_steps
from fxreduce.dynamo.records import Record, attach
from fxreduce.dynamo.reduction import Removal
from fxreduce.dynamo.template import Template
from fxreduce.dynamo.variants import Call, Variants, take
from fxreduce.dynamo.weights import find_weights
from fxreduce.operators.cost import CostModel

log = logging.getLogger("fxreduce")


def compile_merged(
    graph_module: GraphModule,
    inputs: Sequence[Any],
    *,
    backend: Any,
    inner: Inner,
    cost: CostModel,
    disable: frozenset[str],
    removal: Removal | None,
    freeze: bool,
    by_value: bool,
) -> Run:
    """A callable that computes what the graph does, merged where that is exact and pays.

    Args:
        graph_module, inputs: as torch.compile gives them; they stay as they are.
        backend: by which reports of the graph are found.
        inner: compiles the merged graph, or the given one where there is nothing to merge.
        cost, disable: see `fxreduce.fuse`.
        removal: removes rectifiers before.
        freeze: whether the weights become constants.
        by_value: whether weights are compared by value at every call.
    """
    weights = find_weights(graph_module, inputs)
    if not weights:
        return inner.compile(graph_module, inputs)
    take_weights = take([weight.index for weight in weights])
    values: Tensors = take_weights(inputs)
    numbers = find_numbers(graph_module, inputs)
    template = Template.of(graph_module, weights, numbers)
    reason = _obstacle(graph_module, inputs)
    if reason is not None:
        log.info("a graph is compiled unmerged: %s", reason)
        refused = Merging(template, cost).refused(values, reason)
        return _unmerged(graph_module, inputs, inner, Record(backend, values, refused))
    if removal is not None:
        with bound_to(template, values) as (bound, _):
            removal = removal if removal.fits(bound) else None
    merging = Merging(template, cost, disable, removal)
    merged = merging.run(values)
    record = Record(backend, values, merged.report)
    if not merged.modified:
        return _unmerged(graph_module, inputs, inner, record)
    lifted = merged.lifted
    before, after = (len(each.graph.nodes) for each in (graph_module, lifted.graph_module))
    log.info("a graph is merged: %d nodes become %d", before, after)
    for refusal in merged.report.refusals:
        log.debug("left undone: %s (%s): %s", refusal.where, refusal.rewrite, refusal.reason)
    variances = [place for place, weight in enumerate(weights) if weight.variance]
    state = partial(State, by_value=by_value, variances=variances)
    if freeze:
        # Which the graph overwrites are no weights, but inputs like others.
        baked = bake(lifted, {w.index: value for w, value in zip(weights, values, strict=True)})
        run = _compile(baked, inputs, inner.for_constants())
        return Frozen(run, take(baked.inputs), weights, numbers, state(values), record)
    count_fused_steps()
    variants = Variants(inner)
    first = variants.add(lifted, _compile(lifted, inputs, inner), record)

    def fold(weights: Tensors) -> Call | None:
        merged = merging.run(weights)
        return variants.call(merged.lifted, Record(backend, weights, merged.report))

    folds = Folds[Call](fold, state)
    folds.put(values, first)
    return Folding(take_weights, numbers, folds, Late(plain(graph_module), inner))


def _unmerged(
    graph_module: GraphModule, inputs: Sequence[Any], inner: Inner, record: Record
) -> Run:
    run = inner.compile(graph_module, inputs)
    attach(run, record)
    return run


def _obstacle(graph_module: GraphModule, inputs: Sequence[Any]) -> str | None:
    """Why the graph is left as it is, if so."""
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    names = {getattr(node.target, "__name__", "") for node in graph_module.graph.nodes}
    switched = names & {"_set_grad_enabled", "_enter_inference_mode"}
    if (torch.is_grad_enabled() or switched) and any(each.requires_grad for each in tensors):
        return "gradients are enabled"
    if "_enter_autocast" in names or any(
        torch.is_autocast_enabled(kind) for kind in {each.device.type for each in tensors}
    ):
        return "under autocast a merged operator would round elsewhere than the ones it stands for"
    if graph_module.graph.find_nodes(op="call_module"):
        return "it calls modules with weights of their own"
    return None


def _compile(lifted: Lifted, inputs: Sequence[Any], inner: Inner) -> Run:
    context = TracingContext.try_get()
    if context is not None:
        # These take long to import, and have been by now.
        from torch._dynamo.source import ConstantSource
        from torch.fx.experimental.symbolic_shapes import DimDynamic, StatefulSymbolicContext

        # Or AOTAutograd would take their sizes for symbols, as of tensors that it has never seen.
        for place, folded in enumerate(lifted.folded):
            context.tensor_to_context[folded] = StatefulSymbolicContext(
                dynamic_sizes=[DimDynamic.STATIC] * folded.dim(),
                tensor_source=ConstantSource(f"fxreduce_folded_{place}"),
            )
    given = [inputs[place] for place in lifted.inputs]
    return inner.compile(lifted.graph_module, [*given, *lifted.folded])
