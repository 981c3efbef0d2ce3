"""Compiling one graph of torch.compile: whether it is merged, and what then runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch.fx import GraphModule

from fxreduce.dynamo.compiled import Frozen, Untouched
from fxreduce.dynamo.folds import Tensors
from fxreduce.dynamo.held import Held, weights_as_inputs
from fxreduce.dynamo.inner import Inner, Run
from fxreduce.dynamo.lift import Lifted, bake
from fxreduce.dynamo.profile import Profiled
from fxreduce.dynamo.records import Record
from fxreduce.dynamo.reduction import Profile, Removal
from fxreduce.dynamo.source import Source
from fxreduce.dynamo.variants import Call, Variants, take

log = logging.getLogger("fxreduce")


def compile_merged(
    graph_module: GraphModule, inputs: Sequence[Any], *, inner: Inner, **how: Any
) -> Run:
    """A callable that computes what the graph does, merged where that is exact and pays.

    Args:
        graph_module, inputs: as torch.compile gives them; they stay as they are.
        inner: compiles what the graph becomes.
        how: see `_merged` and `Source`.
    """
    lifted, held = weights_as_inputs(graph_module)
    run = _merged(lifted, (*inputs, *held), inner=inner, **how)
    if isinstance(run, Record):
        return Untouched(inner.compile(graph_module, inputs), run)
    if run is None:
        return inner.compile(graph_module, inputs)
    return Held(run, held) if held else run


def _merged(
    graph_module: GraphModule,
    inputs: Sequence[Any],
    *,
    removal: Removal | None,
    profile: Profile | None,
    freeze: bool,
    **how: Any,
) -> Run | Record | None:
    """What runs the merged graph; the record of one that stays as it is; None without weights.

    Args:
        graph_module, inputs: the graph with its weights as inputs.
        removal: removes rectifiers before.
        profile: decides which to remove, once the graph has been observed.
        freeze: whether the weights become constants.
        how: see `Source`.
    """
    source = Source.of(graph_module, inputs, **how)
    inner = source.inner
    if not source.template.weights:
        return None
    values: Tensors = source.take_weights(inputs)
    reason = _obstacle(graph_module, inputs)
    if reason is not None:
        log.info("a graph is compiled unmerged: %s", reason)
        return source.untouched(values, refused=reason)
    if profile is not None and source.has_sites:
        return Profiled(source, profile)
    merging = source.merging(removal, values)
    merged = merging.run(values)
    record = Record(source.backend, values, merged.report)
    lifted = merged.lifted
    if merged.modified:
        before, after = (len(each.graph.nodes) for each in (graph_module, lifted.graph_module))
        log.info("a graph is merged: %d nodes become %d", before, after)
    for refusal in merged.report.refusals:
        log.debug("left undone: %s (%s): %s", refusal.where, refusal.rewrite, refusal.reason)
    if freeze:  # whether anything is merged or not, so that the promise is kept everywhere
        # Which the graph overwrites are no weights, but inputs like others.
        weights = source.template.weights
        baked = bake(lifted, {w.index: value for w, value in zip(weights, values, strict=True)})
        run = _compile(baked, inputs, inner.for_constants())
        state, numbers = source.state(values), source.numbers
        call = Call(run, take(baked.inputs), baked.folded, record)
        return Frozen(call, weights, numbers, state)
    if not merged.modified:
        return record
    variants = Variants(inner)
    folding, folds = source.folding(merging, variants)
    folds.put(values, variants.add(lifted, _compile(lifted, inputs, inner), record))
    return folding


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
