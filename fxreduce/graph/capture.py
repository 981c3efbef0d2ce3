"""The capture ladder: from a model to a graph module, and which rung served."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node, Tracer

from fxreduce.errors import CaptureError, first_line
from fxreduce.graph.affine import is_operator_module, operator_functions
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.nodes import argument, has_hooks, module_of
from fxreduce.graph.rectifiers import find_sites, is_rectifier_module, rectifier_functions
from fxreduce.graph.shapes import call, copied, propagate_shapes

Model = nn.Module | GraphModule | ExportedProgram
_CAPTURE = "fxreduce.capture"
_MODE_DEPENDENT = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
    nn.RReLU,
)


@dataclass(frozen=True)
class CaptureRecord:
    """How a graph was captured: the rung that served, and why each earlier one did not.

    `hooked` names modules whose forward hooks tracing leaves behind.
    """

    rung: str
    failed: tuple[tuple[str, str], ...] = ()
    hooked: tuple[str, ...] = ()


def capture(model: Model, example_inputs: Any = None) -> GraphModule:
    """A graph module that computes what the model does; a copy, the model is unchanged.

    The ladder: a GraphModule or ExportedProgram as it is, `torch.fx.symbolic_trace`, and the same
    with the functions and modules as leaves that the model's library marks for it.

    Args:
        model: in eval mode.
        example_inputs: a tensor, a tuple of positional arguments or a dictionary of keyword
            arguments. With it every node knows the shape of its value, which some merges need.

    Raises:
        CaptureError: the model is in train mode, or no rung could capture it.
    """
    with torch.inference_mode(False):  # or the copy could not be trained
        graph_module, record = _climb(model)
    record = replace(record, hooked=_hooked(as_module(model), graph_module))
    _refuse_training(graph_module)  # a function may have been told to train all the same
    find_sites(graph_module)  # names the sites while all of them are there
    graph_module.meta[_CAPTURE] = record
    if example_inputs is not None:
        propagate_shapes(graph_module, lambda module: call(module, copied(example_inputs)))
    return graph_module


def capture_record(graph_module: GraphModule) -> CaptureRecord:
    """How the graph module was captured."""
    record = graph_module.meta.get(_CAPTURE)
    return record if isinstance(record, CaptureRecord) else CaptureRecord("graph module")


def notes(graph_module: GraphModule) -> tuple[str, ...]:
    """What a user should know of the capture."""
    return tuple(
        f"forward hooks of {name or 'the model itself'} are not part of the graph and do not run"
        for name in capture_record(graph_module).hooked
    )


def as_module(model: Model) -> nn.Module:
    """The model as a module that can be called; it is not copied.

    Raises:
        CaptureError: it is no model, or in train mode.
    """
    module = model.module() if isinstance(model, ExportedProgram) else model
    if not isinstance(module, nn.Module):
        raise CaptureError(
            "the model must be an nn.Module, a torch.fx.GraphModule or a "
            f"torch.export.ExportedProgram; seen: {type(module).__name__}"
        )
    if isinstance(module, GraphModule):
        _refuse_training(module)
        return module
    for name, part in module.named_modules():
        if part.training and (part is module or isinstance(part, _MODE_DEPENDENT)):
            seen = f"{type(part).__name__} {name}".strip()
            raise CaptureError(
                f"a model is captured in eval mode; {seen} is in train mode: call model.eval() "
                "first"
            )
    return module


def _climb(model: Model) -> tuple[GraphModule, CaptureRecord]:
    module = as_module(model)
    copied = deepcopy(module)
    if isinstance(module, GraphModule) and isinstance(copied, GraphModule):
        copied.meta = dict(module.meta)
        exported = isinstance(model, ExportedProgram)
        return copied, CaptureRecord("exported program" if exported else "graph module")
    failed: list[tuple[str, str]] = []
    for rung, trace in (
        ("symbolic trace", _trace),
        ("symbolic trace, leaves", _trace_leaves),
    ):
        try:
            return trace(copied), CaptureRecord(rung, tuple(failed))
        except Exception as error:  # tracing runs the user's forward, which may raise anything
            failed.append((rung, first_line(error)))
    reasons = "; ".join(f"{rung}: {reason}" for rung, reason in failed)
    raise CaptureError(
        f"{type(module).__name__} could not be traced ({reasons}). Export it with "
        "torch.export.export(model, example_inputs) and pass the ExportedProgram, or pass a part "
        "of the model without data-dependent control flow"
    )


def _hooked(module: nn.Module, graph_module: GraphModule) -> tuple[str, ...]:
    """Modules with forward hooks that the graph does not call as such."""
    called = {str(node.target) for node in graph_module.graph.find_nodes(op="call_module")}
    return tuple(
        name for name, part in module.named_modules() if has_hooks(part) and name not in called
    )


class _LeafTracer(Tracer):
    """Keeps calls of torch's own modules whole, of registered ones, and of what it is told."""

    def __init__(
        self,
        leaves: Iterable[type[nn.Module]] = (),
        functions: Iterable[Callable[..., Any]] = (),
    ) -> None:
        registered = (*rectifier_functions(), *operator_functions())
        super().__init__(autowrap_functions=(*functions, *registered))
        # A border depends on the size of the input, which a symbolic trace does not know.
        self._leaves: tuple[type[nn.Module], ...] = (BorderCorrectedConv, *leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, self._leaves)
            or is_rectifier_module(m)
            or is_operator_module(m)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _trace(model: nn.Module, tracer: Tracer | None = None) -> GraphModule:
    graph = (tracer or _LeafTracer()).trace(model)
    return GraphModule(model, graph, type(model).__name__)


def _trace_leaves(model: nn.Module) -> GraphModule:
    """Symbolic trace with the leaves that timm marks, where timm is what the model was built with.

    Its `*NormAct*` modules are traced through: as leaves they would hide their activations.
    """
    library = sys.modules.get("timm.layers")
    if library is None:
        raise CaptureError("no library is loaded that marks leaves")
    leaves = (cls for cls in library.get_notrace_modules() if "NormAct" not in cls.__name__)
    return _trace(model, _LeafTracer(leaves, library.get_notrace_functions()))


def _refuse_training(graph_module: GraphModule) -> None:
    """Refuse a graph that was traced in train mode, with dropout or batch-norm baked on."""
    for node in graph_module.graph.nodes:
        module = module_of(graph_module, node)
        if _is_told_to_train(node) or (isinstance(module, _MODE_DEPENDENT) and module.training):
            raise CaptureError(
                f"a graph is captured in eval mode; {node.name} ({node.target}) is in train mode: "
                "call eval() on the model and capture it again; a functional one needs "
                "training=self.training"
            )


def _is_told_to_train(node: Node) -> bool:
    """Whether the function that the node calls has a `training` argument, and it is true."""
    if node.op != "call_function":
        return False
    parameters = _parameters(cast(Callable[..., Any], node.target))

    def given(name: str) -> Any:
        return argument(node, *parameters[name])

    if not any(given(name) for name in ("training", "train") if name in parameters):
        return False
    # Batch-norm without running statistics normalises by the batch's own in eval, too.
    return "running_mean" not in parameters or given("running_mean") is not None


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, tuple[int, str, Any]]:
    """Place, name and default of each parameter of a Python function or ATen operator, by name."""
    if isinstance(function, OpOverload):
        given = [(each.name, each.default_value) for each in function._schema.arguments]
    else:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # a builtin: torch.dropout is ATen's
            packet = getattr(torch.ops.aten, getattr(function, "__name__", ""), None)
            overload = getattr(packet, "default", None)
            return {} if overload is None else _parameters(overload)
        given = [(each.name, each.default) for each in signature.parameters.values()]
    return {name: (place, name, default) for place, (name, default) in enumerate(given)}
