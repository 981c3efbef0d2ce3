"""fxreduce.save and fxreduce.load: a reduced model, as it is now, in one file."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import nn
from torch.fx import GraphModule

from fxreduce.errors import CaptureError, PlanError, UnsupportedError, first_line
from fxreduce.graph.capture import Model, capture
from fxreduce.plain import rebuilt
from fxreduce.planning.example import InputSpec
from fxreduce.planning.fingerprint import fingerprint, require_same
from fxreduce.planning.origin import ORIGIN, Origin
from fxreduce.report.report import REPORT, Report, report_of
from fxreduce.saving.exports import EXPORTS, Batch
from fxreduce.saving.functions import functions_called
from fxreduce.saving.graphs import graph_from_json, graph_to_json, saved_nodes
from fxreduce.saving.model_file import ModelFile
from fxreduce.saving.modules import build, recipe_of
from fxreduce.saving.tensors import describe_tensors, place_tensors
from fxreduce.versions import versions_differ


@torch.inference_mode(False)  # what is read back is compared
def save(reduced: GraphModule, path: str | PathLike[str], *, example_inputs: Any = None) -> Path:
    """Write a reduced model, as it is now, to one file; the model is unchanged.

    The suffix says what is written: `.pt2` a program of torch.export, `.onnx` an ONNX model, both
    for any batch size; any other one a safetensors file for `load`, which holds the weights,
    fine-tuned ones too, the merged graph and the report. What is written is read back and compared
    before it takes the place of an older file. Forward hooks are not saved.

    Args:
        reduced: what `apply`, `fuse` or `Plan.apply` returned.
        path: of the file; in a folder that is there already, it is `reduced.safetensors`.
        example_inputs: for `.pt2` and `.onnx`: see `capture`; by default random ones, of the shapes
            that the reduced model was made with.

    Returns:
        The path of the file.

    Raises:
        UnsupportedError: the module was not made by fxreduce; its graph holds what cannot be
            written, and the node is named; a package is not installed.
        EquivalenceError: the exported model computes something else.
        PlanError: the file cannot be written.
    """
    path = _file(path)
    try:
        if path.suffix in EXPORTS:
            _, origin = _made(reduced)
            EXPORTS[path.suffix](reduced, path, Batch.given(example_inputs, origin.inputs))
        else:
            _content(reduced).write(path, lambda each: _require_same(reduced, each))
    except OSError as error:
        raise PlanError(f"the reduced model cannot be written to {path}: {error}") from error
    return path


@torch.inference_mode(False)  # or the parameters could not be trained
def load(path: str | PathLike[str], model: Model | None = None) -> GraphModule:
    """Read a reduced model that `save` wrote; nothing is unpickled and no code of the file runs.

    Args:
        path: the file, or the folder that `save` was given.
        model: one of the architecture that the reduced model was made from, in eval mode; its
            weights do not matter and it is unchanged. It is needed where the graph calls modules or
            functions of other libraries than torch; where it is given its architecture is checked.

    Returns:
        The reduced model in eval mode on the CPU, with its report.

    Raises:
        PlanError: there is no such file, it is damaged or was edited, or the model is of another
            architecture; the first difference is named.
        UnsupportedError: the graph needs `model`, or safetensors is not installed.
        CaptureError: the model is in train mode or cannot be captured.
    """
    path = _file(path)
    if path.suffix in EXPORTS:
        raise UnsupportedError(
            f"load reads what save wrote with another suffix; {path} is read by "
            + ("torch.export.load" if path.suffix == ".pt2" else "onnxruntime.InferenceSession")
        )
    try:
        content = ModelFile.read(path)
        if (difference := versions_differ(content.torch)) is not None:
            warn(f"{path}: {difference}", stacklevel=2)
        inputs = None if content.inputs is None else rebuilt(InputSpec, content.inputs)
        captured = None if model is None else _captured(model, inputs)
        if captured is not None:
            require_same(tuple(content.architecture), fingerprint(captured), "the reduced model")
        result = _restored(content, captured)
        result.meta[REPORT] = rebuilt(Report, content.report)
        result.meta[ORIGIN] = Origin(tuple(content.architecture), inputs)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PlanError(
            f"{path} holds a damaged model: {type(error).__name__}: {first_line(error)}. Save the "
            "reduced model again"
        ) from error
    return result


def _file(path: str | PathLike[str]) -> Path:
    path = Path(path)
    return path / "reduced.safetensors" if path.is_dir() else path


def _made(reduced: GraphModule) -> tuple[Report, Origin]:
    """The report of a reduced model, and what it was made from."""
    report, origin = report_of(reduced), getattr(reduced, "meta", {}).get(ORIGIN)
    if report is None or not isinstance(origin, Origin):
        raise UnsupportedError(
            "save writes what fxreduce.apply, fuse or plan.apply returned; this "
            f"{type(reduced).__name__} was not made by fxreduce, or was pickled since"
        )
    return report, origin


def _content(reduced: GraphModule) -> ModelFile:
    found, origin = _made(reduced)
    tensors, described = describe_tensors(reduced)
    calls = [node for node in saved_nodes(reduced) if node.op == "call_module"]
    paths = dict.fromkeys(str(node.target) for node in calls)
    return ModelFile(
        torch=torch.__version__,
        class_name=type(reduced).__name__,
        architecture=list(origin.architecture),
        graph=graph_to_json(reduced),
        modules={path: recipe_of(reduced.get_submodule(path)) for path in paths},
        described=described,
        report=asdict(found),
        inputs=None if origin.inputs is None else asdict(origin.inputs),
        tensors=tensors,
    )


def _restored(content: ModelFile, source: GraphModule | None) -> GraphModule:
    """The model of a file; what the file does not describe is taken from `source`."""
    if content.needs_model and source is None:
        raise UnsupportedError(
            f"the file does not describe {', '.join(content.needs_model[:3])}, modules of the "
            "user's own: pass the model that it was made from, fxreduce.load(path, model)"
        )
    library = {} if source is None else functions_called(source)
    graph = graph_from_json(content.graph, library)
    root = nn.Module()
    for path, recipe in content.modules.items():
        module = _taken(source, path) if recipe is None else build(recipe)
        _set(root, path, module)
    place_tensors(root, content.tensors, content.described)
    result = GraphModule(root, graph, content.class_name).eval()
    meta = [name for name, tensor in _tensors(result).items() if tensor.is_meta]
    if meta:
        raise ValueError(f"no weights for {', '.join(meta[:3])}")
    return result


def _taken(source: GraphModule | None, path: str) -> nn.Module:
    assert source is not None  # or it would have been refused
    return deepcopy(source.get_submodule(path))


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for kind in (module.named_parameters, module.named_buffers)
        for name, tensor in kind(remove_duplicate=False)
    }


def _require_same(reduced: GraphModule, content: ModelFile) -> None:
    """Raise UnsupportedError unless what was read back has the graph and tensors of the model."""
    again = _restored(content, reduced)
    mine, its = (describe_tensors(each)[0] for each in (reduced, again))
    differ = [name for name, tensor in mine.items() if not _equal(tensor, its.get(name))]
    if graph_to_json(again) != graph_to_json(reduced):
        differ.append("the graph")
    if differ:
        raise UnsupportedError(
            f"a saved model, read back, must be what it was; {', '.join(differ[:3])} is not. Use "
            "torch.export.save instead and report the model"
        )


def _equal(tensor: torch.Tensor, other: torch.Tensor | None) -> bool:
    if other is None or tensor.dtype != other.dtype:
        return False
    return torch.equal(tensor.detach().cpu().nan_to_num(), other.detach().cpu().nan_to_num())


def _captured(model: Model, inputs: InputSpec | None) -> GraphModule:
    try:
        return capture(model)
    except CaptureError:  # some models are captured on inputs alone
        if (example := _example(inputs)) is None:
            raise
        return capture(model, example)


def _example(inputs: InputSpec | None) -> Any:
    """Random inputs as `capture` takes them; None where positional and named ones are mixed."""
    if inputs is None or (inputs.args and inputs.kwargs):
        return None
    args, kwargs = inputs.example(None).batch
    return kwargs or args
