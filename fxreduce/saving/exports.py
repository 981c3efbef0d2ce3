"""Reduced models as programs that run without fxreduce: torch.export and ONNX, compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxreduce.calibration.batches import device_of
from fxreduce.errors import EquivalenceError, UnsupportedError, first_line
from fxreduce.extras import required
from fxreduce.files import write_atomically
from fxreduce.graph.compare import difference, model_dtype, tolerance
from fxreduce.graph.outputs import plain_containers
from fxreduce.graph.signature import Arguments
from fxreduce.planning.example import InputSpec

_SIZES = (1, 3)  # other batch sizes than the one that is exported with
_INSTEAD = "Save it with the suffix .safetensors instead"


@dataclass(frozen=True)
class Batch(Arguments):
    """The arguments of a call, whose samples lie along the first axis of every tensor."""

    @classmethod
    def given(cls, example_inputs: Any, inputs: InputSpec | None) -> Batch:
        """The example inputs, or else random ones of known shapes.

        Raises:
            UnsupportedError: neither is given.
        """
        if example_inputs is not None:
            found = Arguments.of(example_inputs)
            return cls(found.args, found.kwargs)
        if inputs is None:
            raise UnsupportedError(
                "to export a model its inputs must be known: pass example_inputs, as in "
                "fxreduce.save(reduced, path, example_inputs=x)"
            )
        return cls(*inputs.example(None).batch)

    def sized(self, batch: int, device: torch.device | None) -> Batch:
        """The first sample, `batch` times."""

        def resize(tensor: Tensor) -> Tensor:
            first = tensor[:1].repeat(batch, *(1,) * (tensor.dim() - 1)) if tensor.dim() else tensor
            return first.to(device)

        resized = self.map(resize)
        return Batch(resized.args, resized.kwargs)

    def dynamic(self, module: nn.Module) -> dict[str, Any]:
        """What torch.export is told by name: the first axis of every tensor is the batch."""
        batch = Dim("batch")
        named = self.bind(module).arguments
        shapes: dict[str, Any] = pytree.tree_map(
            lambda value: {0: batch} if isinstance(value, Tensor) and value.dim() else None, named
        )
        return shapes


def write_program(reduced: GraphModule, path: Path, given: Batch) -> None:
    """Write a program of torch.export for any batch size, read it back and compare.

    Outputs of classes of the model's own become dictionaries, so that the file is read anywhere.

    Raises:
        UnsupportedError: torch.export cannot express the model.
        EquivalenceError: the program, read back, computes something else.
        OSError: the file cannot be written.
    """
    program = _program(reduced, given)
    _return_plain(program, _output(reduced, given.sized(2, device_of(reduced))))

    def write(temporary: Path) -> None:
        _save(program, temporary)
        again = torch.export.load(temporary).module()
        _compare(reduced, partial(_output, again), given, "torch.export")

    write_atomically(path, write)


def write_onnx(reduced: GraphModule, path: Path, given: Batch) -> None:
    """Write an ONNX model for any batch size, run it with onnxruntime and compare.

    Raises:
        UnsupportedError: a package is missing, or torch.onnx cannot express the model.
        EquivalenceError: onnxruntime computes something else.
        OSError: the file cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _library(package)
    program, two = _program(reduced, given), given.sized(2, device_of(reduced))
    try:
        # The shapes once more, for the name of the batch's axis.
        shapes = two.dynamic(reduced)
        model: Any = torch.onnx.export(
            program, two.args, kwargs=two.kwargs, dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    except Exception as error:  # torch.onnx raises many kinds, each of them its verdict
        raise UnsupportedError(
            f"torch.onnx cannot express the reduced model: {first_line(error)}. {_INSTEAD}"
        ) from error

    def write(temporary: Path) -> None:
        model.save(temporary, external_data=False)
        session = _library("onnxruntime").InferenceSession(
            temporary, providers=["CPUExecutionProvider"]
        )
        names = [each.name for each in session.get_inputs()]

        def run(each: Batch) -> list[Tensor]:
            values = pytree.tree_leaves((each.args, each.kwargs))
            fed = {n: v.detach().cpu().numpy() for n, v in zip(names, values, strict=True)}
            return [torch.from_numpy(output) for output in session.run(None, fed)]

        _compare(reduced, run, given, "onnxruntime")

    write_atomically(path, write)


EXPORTS: dict[str, Callable[[GraphModule, Path, Batch], None]] = {
    ".pt2": write_program,
    ".onnx": write_onnx,
}


def _program(reduced: GraphModule, given: Batch) -> ExportedProgram:
    # torch.export takes batch sizes 0 and 1 for constants: the example has two samples.
    two = given.sized(2, device_of(reduced))
    try:
        shapes = two.dynamic(reduced)
        return torch.export.export(
            _as_code(reduced), two.args, two.kwargs, dynamic_shapes=shapes, strict=False
        )
    except Exception as error:  # torch.export raises many kinds, each of them its verdict
        raise UnsupportedError(
            "torch.export cannot express the reduced model for any batch size: "
            f"{first_line(error)}. {_INSTEAD}"
        ) from error


def _as_code(reduced: GraphModule) -> nn.Module:
    """The module as its code alone: of a graph torch.export takes keyword arguments by place."""
    forward = type(reduced).forward
    module: nn.Module = type(type(reduced).__name__, (nn.Module,), {"forward": forward})()
    module.__dict__.update(vars(reduced))
    return module


def _return_plain(program: ExportedProgram, output: Any) -> None:
    """Let a program that returns the likes of an output return plain containers instead."""
    for each in program.module_call_graph:
        if not each.fqn and each.signature is not None:
            each.signature.out_spec = pytree.tree_structure(plain_containers(output))


def _output(module: Callable[..., Any], given: Batch) -> Any:
    with torch.no_grad():
        return module(*given.args, **given.kwargs)


def _save(program: ExportedProgram, path: Path) -> None:
    try:
        torch.export.save(program, path)
    except OSError:
        raise
    except Exception as error:  # torch.export raises many kinds, each of them its verdict
        raise UnsupportedError(
            f"torch.export cannot write the reduced model: {first_line(error)}. {_INSTEAD}"
        ) from error


def _compare(reduced: GraphModule, run: Callable[[Batch], Any], given: Batch, by: str) -> None:
    allowed = tolerance(model_dtype(reduced))
    for size in _SIZES:
        each = given.sized(size, device_of(reduced))
        expected, seen = _output(reduced, each), run(each)
        leaves = [
            [v.cpu() for v in pytree.tree_leaves(each) if isinstance(v, Tensor)]
            for each in (expected, seen)
        ]
        if (apart := difference(*leaves).max_rel) > allowed:
            raise EquivalenceError(
                f"the exported model must compute what the reduced one does; by {by} it is off by "
                f"{apart:.3g} relative for a batch of {size}, {allowed:.3g} is allowed. {_INSTEAD} "
                "and report the model"
            )


def _library(name: str) -> Any:
    return required(name, "an ONNX file", "export")
