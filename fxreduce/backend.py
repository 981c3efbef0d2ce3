"""The backend for torch.compile, under the name by which it is installed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from fxreduce.dynamo.backend import Backend
from fxreduce.dynamo.inner import Run
from fxreduce.operators.cost import CostModel


def backend(
    inner: str | Callable[..., Any] = "inductor",
    *,
    cost: str | CostModel = "flops",
    disable: str | Collection[str] = (),
    freeze: bool = False,
    by_value: bool = False,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
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

    What `fxreduce.fuse` merges is merged, but for padded convolutions behind padded ones. Where
    gradients are enabled and a weight or an input requires them, and under autocast, graphs are
    compiled as they are.

    Args:
        inner: compiles what is merged: a backend that torch.compile knows by name, or a callable
            `(graph_module, example_inputs) -> callable`.
        cost: which exact merges pay, see `fxreduce.fuse`.
        disable: names of passes to skip.
        freeze: make the weights constants of the compiled graph, which inductor then prepares for
            its kernels; calls raise WeightsChangedError when one is another tensor or has been
            written.
        by_value: compare weights with copies at every call: slower, and twice their memory.
        mode, options: of the inner backend.

    Raises:
        UnsupportedError: the inner backend, the cost model, a pass or an option is not known.
    """
    return Backend.of(
        inner,
        cost=cost,
        disable=disable,
        freeze=freeze,
        by_value=by_value,
        mode=mode,
        options=options,
    )


def compile_graph(graph_module: GraphModule, example_inputs: Sequence[Any], **given: Any) -> Run:
    """What `torch.compile(model, backend="fxreduce")` calls; see `backend` for the options."""
    return backend()(graph_module, example_inputs, **given)
