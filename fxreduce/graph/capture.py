"""The capture ladder: from a model to a graph module, and which rung served."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Tracer, symbolic_trace

from fxreduce.errors import CaptureError
from fxreduce.graph.nodes import argument, module_of, operation
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.shapes import call, propagate_shapes

Model = nn.Module | GraphModule | ExportedProgram
_CAPTURE = "fxreduce.capture"
# The place of the `training` argument of the operators that behave differently in training.
_TRAINING_ARGUMENT = {"dropout": 2, "alpha_dropout": 2, "feature_dropout": 2, "batch_norm": 5}
_MODE_DEPENDENT = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)


@dataclass(frozen=True)
class CaptureRecord:
    """How a graph was captured: the rung that served, and why each earlier one did not."""

    rung: str
    failed: tuple[tuple[str, str], ...] = ()


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
    graph_module, record = _climb(model)
    _refuse_training(graph_module)
    find_sites(graph_module)  # names the sites while all of them are there
    graph_module.meta[_CAPTURE] = record
    if example_inputs is not None:
        propagate_shapes(graph_module, lambda module: call(module, example_inputs))
    return graph_module


def capture_record(graph_module: GraphModule) -> CaptureRecord:
    """How the graph module was captured."""
    record = graph_module.meta.get(_CAPTURE)
    return record if isinstance(record, CaptureRecord) else CaptureRecord("graph module")


def _climb(model: Model) -> tuple[GraphModule, CaptureRecord]:
    if isinstance(model, ExportedProgram):
        return _as_graph_module(model.module()), CaptureRecord("exported program")
    if not isinstance(model, nn.Module):
        raise CaptureError(
            "the model must be an nn.Module, a torch.fx.GraphModule or a "
            f"torch.export.ExportedProgram; seen: {type(model).__name__}"
        )
    if isinstance(model, GraphModule):
        copy = deepcopy(model)
        copy.meta = dict(model.meta)
        return copy, CaptureRecord("graph module")
    if model.training:
        raise CaptureError(
            f"a model is captured in eval mode; {type(model).__name__} is in train mode: call "
            "model.eval() first"
        )
    model = deepcopy(model)
    failed: list[tuple[str, str]] = []
    for rung, trace in (
        ("symbolic trace", symbolic_trace),
        ("symbolic trace, leaves", _trace_leaves),
    ):
        try:
            return trace(model), CaptureRecord(rung, tuple(failed))
        except Exception as error:  # tracing runs the user's forward, which may raise anything
            failed.append((rung, _first_line(error)))
    reasons = "; ".join(f"{rung}: {reason}" for rung, reason in failed)
    raise CaptureError(
        f"{type(model).__name__} could not be traced ({reasons}). Export it with "
        "torch.export.export(model, example_inputs) and pass the ExportedProgram, or pass a part "
        "of the model without data-dependent control flow"
    )


def _as_graph_module(module: nn.Module) -> GraphModule:
    assert isinstance(module, GraphModule)  # what ExportedProgram.module() returns
    return deepcopy(module)


def _trace_leaves(model: nn.Module) -> GraphModule:
    """Symbolic trace with the leaves that timm marks, where timm is what the model was built with.

    Its `*NormAct*` modules are traced through: as leaves they would hide their activations.
    """
    library = sys.modules.get("timm.layers")
    if library is None:
        raise CaptureError("no library is loaded that marks leaves")
    functions: list[Callable[..., Any]] = library.get_notrace_functions()
    leaves = tuple(cls for cls in library.get_notrace_modules() if "NormAct" not in cls.__name__)

    class LeafTracer(Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)

    graph = LeafTracer(autowrap_functions=tuple(functions)).trace(model)
    return GraphModule(model, graph, type(model).__name__)


def _refuse_training(graph_module: GraphModule) -> None:
    """Refuse a graph that was traced in train mode, with dropout or batch-norm baked on."""
    for node in graph_module.graph.nodes:
        module = module_of(graph_module, node)
        name = (operation(node) or "").removesuffix("_")
        baked = name in _TRAINING_ARGUMENT and argument(node, _TRAINING_ARGUMENT[name], "training")
        if baked or (isinstance(module, _MODE_DEPENDENT) and module.training):
            raise CaptureError(
                f"a graph is captured in eval mode; {node.name} ({node.target}) is in train mode: "
                "call eval() on the model and capture it again"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
