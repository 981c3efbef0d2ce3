"""What `fxreduce inspect` says of a file; nothing of the file is run or unpickled."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fxreduce
from fxreduce.cli.errors import UsageError
from fxreduce.cli.saving import FORMATS
from fxreduce.errors import UnsupportedError, first_line
from fxreduce.extras import required
from fxreduce.plain import rebuilt
from fxreduce.report.table import table
from fxreduce.saving.model_file import ModelFile

SCHEMA = 1  # of what --json prints
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError)  # what JSON of another form raises


@dataclass(frozen=True)
class Found:
    """What is in a file: single facts, and the details as JSON and as text."""

    facts: dict[str, Any]
    details: Any
    text: str


def inspect(arguments: argparse.Namespace) -> None:
    """Print what a file is, as a table or as JSON."""
    found = look_into(arguments.file)
    if arguments.json:
        print(json.dumps({"schema": SCHEMA, **found.facts, "details": found.details}))
        return
    rows = [(key, _text(value)) for key, value in found.facts.items()]
    print(table(("what", "value"), rows, left=2), found.text, sep="\n\n")


def look_into(path: Path) -> Found:
    """What is in a file that `fxreduce reduce`, `fxreduce.save` or `Plan.save` wrote.

    Raises:
        UsageError: there is no such file, or it is not what its suffix says.
        UnsupportedError: the suffix is none of those that fxreduce writes.
        PlanError: a plan or a reduced model is damaged or was edited.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.suffix not in _READERS:
        raise UnsupportedError(
            f"a file of fxreduce ends in {', '.join(_READERS)}; seen: {path.name!r}"
        )
    general = {"file": str(path), "is": FORMATS[path.suffix][0], "bytes": path.stat().st_size}
    found = _READERS[path.suffix](path)
    return replace(found, facts=general | found.facts)


def _plan(path: Path) -> Found:
    plan = fxreduce.Plan.load(path)
    rows = [
        (str(place), step.site, f"{step.entropy:.4f}", f"{step.importance:.4g}")
        for place, step in enumerate(plan.steps, 1)
    ]
    facts = {
        "removes": f"{len(plan.steps)} of {len(plan.entropies)} rectifiers",
        "stopped": plan.stopped,
        "compensate": plan.compensate,
        "cost": plan.cost.name,
        "fitted operators": len(plan.weights),
        "architecture": f"{len(plan.architecture)} sites and parameters",
        "inputs": None if plan.inputs is None else _shapes(vars(plan.inputs)),
    }
    text = table(("", "removed site", "entropy (bits)", "importance"), rows, left=2)
    return Found(facts, [asdict(step) for step in plan.steps], text)


def _reduced(path: Path) -> Found:
    try:
        file = ModelFile.read(path)
        report = rebuilt(fxreduce.Report, file.report)
        facts = {
            "model": file.class_name,
            "torch": file.torch,
            "weights": sum(tensor.numel() for tensor in file.tensors.values()),
            "needs model": bool(file.needs_model),
            "inputs": None if file.inputs is None else _shapes(file.inputs),
        }
    except _DAMAGED as error:
        raise UsageError(f"{path} holds a damaged model: {first_line(error)}") from error
    return Found(facts, file.report, str(report))


def _program(path: Path) -> Found:
    """The parts of the archive; loading a program would take the code of its operators along."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            (model,) = (name for name in names if name.endswith("models/model.json"))
            graph = json.loads(archive.read(model))["graph_module"]["graph"]
        operators = [node["target"] for node in graph["nodes"]]
    except (zipfile.BadZipFile, OSError, *_DAMAGED) as error:
        raise UsageError(f"{path} is no program of torch.export: {first_line(error)}") from error
    return _counted({}, operators)


def _onnx(path: Path) -> Found:
    onnx = required("onnx", str(path), "export")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # of protobuf or of the checker
        raise UsageError(f"{path} is no ONNX model: {first_line(error)}") from error
    inputs = {
        each.name: [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in model.graph.input
    }
    facts = {"opset": max(each.version for each in model.opset_import), "inputs": inputs}
    return _counted(facts, [node.op_type for node in model.graph.node])


def _counted(facts: dict[str, Any], names: list[str]) -> Found:
    counts = dict(Counter(names).most_common())
    rows = [(name, str(count)) for name, count in counts.items()]
    return Found(facts | {"operators": len(names)}, counts, table(("operator", "count"), rows))


def _shapes(inputs: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(inputs, default=vars))
    given = [*plain["args"], *plain["kwargs"].values()]
    return ", ".join(f"{each['dtype']}{each['shape']}" for each in given)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


_READERS: dict[str, Callable[[Path], Found]] = {
    ".json": _plan,
    ".safetensors": _reduced,
    ".pt2": _program,
    ".onnx": _onnx,
}
