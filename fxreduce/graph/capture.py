"""The capture ladder: from a model to a graph module, and which rung served."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fxreduce.errors import CaptureError, first_line
from fxreduce.graph.compare import difference, model_dtype, paired, tolerance
from fxreduce.graph.composites import compose_rectifiers
from fxreduce.graph.computed import copies_of_computed
from fxreduce.graph.decomposed import compose_batch_norms
from fxreduce.graph.eval_mode import refuse_training, require_eval
from fxreduce.graph.export import BOUND, trace_export
from fxreduce.graph.nodes import has_hooks
from fxreduce.graph.outputs import make_known
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.shapes import call, copied, propagate_shapes
from fxreduce.graph.signature import Arguments
from fxreduce.graph.state import kept_state
from fxreduce.graph.trace import holds_rectifiers, trace, trace_leaves
from fxreduce.graph.unwrap import copy_unwrapped, unwrap, wrappers

Model = nn.Module | GraphModule | ExportedProgram
_CAPTURE = "fxreduce.capture"
_RUNGS = (
    ("symbolic trace", trace),
    ("symbolic trace, leaves", trace_leaves),
    ("torch.export", trace_export),
)


@dataclass(frozen=True)
class CaptureRecord:
    """How a graph was captured: the rung that served, and why each earlier one did not.

    Attributes:
        rung: the rung that served.
        failed: earlier rungs, each with the reason.
        hooked: modules whose forward hooks tracing leaves behind.
        whole: modules that are called as a whole, so that the rectifiers inside are not seen.
        unwrapped: wrappers that were left out: the name of each in the model and its class.
        bound: which sizes of the example inputs the graph is bound to, and why, if it is.
    """

    rung: str
    failed: tuple[tuple[str, str], ...] = ()
    hooked: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    unwrapped: tuple[tuple[str, str], ...] = ()
    bound: str | None = None


def capture(model: Model, example_inputs: Any = None) -> GraphModule:
    """A graph module that computes what the model does; a copy, the model is unchanged.

    The ladder: a GraphModule or ExportedProgram as it is, `torch.fx.symbolic_trace`, the same with
    the functions and modules as leaves that the model's library marks for it, and `torch.export`.
    A rung serves if it captures the model, computes what the model does on the example inputs, and
    shows all rectifiers. Optional arguments that the example inputs leave out keep their defaults:
    the graph refuses others.

    Args:
        model: in eval mode. Wrappers for data parallelism and torch.compile are left out.
        example_inputs: a tensor, a tuple of positional arguments or a dictionary of keyword
            arguments. With it every node knows the shape of its value, which some merges need, and
            torch.export serves where symbolic traces do not.

    Raises:
        CaptureError: the model is in train mode, or no rung could capture it.
    """
    given = None if example_inputs is None else Arguments.of(copied(example_inputs))
    with torch.inference_mode(False):  # or the copy could not be trained
        graph_module, record = _climb(model, given)
    record = replace(record, hooked=_hooked(model, graph_module))
    refuse_training(graph_module)  # a function may have been told to train all the same
    _drop_names_of_types(graph_module)
    compose_batch_norms(graph_module)
    compose_rectifiers(graph_module)
    find_sites(graph_module)  # names the sites while all of them are there
    graph_module.meta[_CAPTURE] = record
    if given is not None:
        propagate_shapes(graph_module, lambda module: call(module, given))
    return graph_module


def capture_record(graph_module: GraphModule) -> CaptureRecord:
    """How the graph module was captured."""
    record = graph_module.meta.get(_CAPTURE)
    return record if isinstance(record, CaptureRecord) else CaptureRecord("graph module")


def notes(graph_module: GraphModule) -> tuple[str, ...]:
    """What a user should know of the capture."""
    record = capture_record(graph_module)
    return (
        *(f"{kind} around {name or 'the model'} is left out" for name, kind in record.unwrapped),
        *(f"{rung} did not capture the model: {reason}" for rung, reason in record.failed),
        *(
            f"{name} is kept whole, rectifiers inside are not seen; with example inputs "
            "torch.export may show them"
            for name in record.whole
        ),
        *((record.bound,) if record.bound else ()),
        *(
            f"forward hooks of {name or 'the model itself'} are not part of the graph and do not "
            "run"
            for name in record.hooked
        ),
    )


def as_module(model: Model) -> nn.Module:
    """The model as a module that can be called, without wrappers; it is not copied.

    Raises:
        CaptureError: it is no model, or in train mode.
    """
    module = model.module() if isinstance(model, ExportedProgram) else model
    if not isinstance(module, nn.Module):
        raise CaptureError(
            "the model must be an nn.Module, a torch.fx.GraphModule or a "
            f"torch.export.ExportedProgram; seen: {type(module).__name__}"
        )
    module = unwrap(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError(
            "TorchScript has no graph that torch.fx can read; pass the module that it was made from"
        )
    if isinstance(module, GraphModule):
        refuse_training(module)
    else:
        require_eval(module)
    return module


def _climb(model: Model, given: Arguments | None) -> tuple[GraphModule, CaptureRecord]:
    module = as_module(model)
    if isinstance(module, GraphModule):
        copy = deepcopy(module, copies_of_computed(module))
        copy.meta = dict(module.meta)
        exported = isinstance(model, ExportedProgram)
        return copy, CaptureRecord("exported program" if exported else "graph module")
    unwrapped = wrappers(model) if isinstance(model, nn.Module) else ()
    module = copy_unwrapped(module)
    expected = None if given is None else _expected(module, given)
    failed: list[tuple[str, str]] = []
    second: tuple[GraphModule, CaptureRecord] | None = None
    for rung, trace_with in _RUNGS:
        try:
            graph_module = trace_with(module, given)
            if given is not None:
                _require_equal(graph_module, given, expected)
        except Exception as error:  # tracing runs the user's forward, which may raise anything
            failed.append((rung, first_line(error)))
            continue
        whole = holds_rectifiers(graph_module)
        bound = graph_module.meta.pop(BOUND, None)
        record = CaptureRecord(rung, tuple(failed), (), whole, unwrapped, bound)
        if not whole:
            return graph_module, record
        failed.append((rung, f"{whole[0]} would be kept whole, with rectifiers inside"))
        second = second or (graph_module, record)
    if second is not None:
        return second
    reasons = "; ".join(f"{rung}: {reason}" for rung, reason in failed)
    raise CaptureError(
        f"{type(module).__name__} could not be captured ({reasons}). Pass example inputs, or a "
        "part of the model without control flow that depends on data"
    )


def _expected(model: nn.Module, given: Arguments) -> Any:
    """What the model makes of the example inputs.

    Raises:
        CaptureError: it does not run on them.
    """
    given.bind(model)
    try:
        output = _output(model, given)
    except Exception as error:  # whatever the model's own operators raise
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs: {first_line(error)}"
        ) from error
    make_known(output)
    return output


def _require_equal(graph_module: GraphModule, given: Arguments, expected: Any) -> None:
    """Raise an error where the graph does not compute what the model does on the inputs.

    On the meta device, where there are no values, shapes alone are compared.
    """
    output = _output(graph_module, given)
    if any(tensor.is_meta for tensor, _ in paired(expected, output)):
        return
    apart = difference(expected, output).max_rel
    if not apart <= tolerance(model_dtype(graph_module)):
        raise CaptureError(f"the graph's output differs from the model's by {apart:.3g} relative")


def _output(module: nn.Module, given: Arguments) -> Any:
    """The module's output on a copy of the inputs; its buffers stay as they are."""
    with torch.random.fork_rng(), torch.no_grad(), kept_state(module):
        torch.manual_seed(0)
        return copied(call(module, given))  # it may share memory with a buffer


def _drop_names_of_types(graph_module: GraphModule) -> None:
    """Leave out annotations that are strings: torch.fx before 2.14 cannot pickle such a graph."""
    named = [node for node in graph_module.graph.nodes if isinstance(node.type, str)]
    for node in named:
        node.type = None
    if named:
        graph_module.recompile()


def _hooked(model: Model, graph_module: GraphModule) -> tuple[str, ...]:
    """Modules with forward hooks that the graph does not call as such."""
    if isinstance(model, ExportedProgram):
        return ()  # what hooks there are check the inputs, as the graph does
    called = {str(node.target) for node in graph_module.graph.find_nodes(op="call_module")}
    hooked = (name for name, part in unwrap(model).named_modules() if has_hooks(part))
    return tuple(name for name in hooked if name not in called)
