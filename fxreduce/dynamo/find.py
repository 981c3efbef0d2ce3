"""Finding what was done with the graphs of a compiled model."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from fxreduce.dynamo.backend import Backend
from fxreduce.dynamo.records import find_records
from fxreduce.report.compiled import CompiledReport
from fxreduce.report.report import undrawn


def report_compiled(compiled: object) -> CompiledReport | None:
    """What was done with all graphs of a backend, or with those of a compiled module.

    Args:
        compiled: a backend, or a module that torch.compile returned or whose `compile` was called.

    Returns:
        None where fxreduce has compiled nothing of it yet, or nothing is left of that.
    """
    if isinstance(compiled, Backend):
        records = find_records(compiled)
    elif not isinstance(compiled, nn.Module):
        return None
    else:
        weights = {id(each) for each in chain(compiled.parameters(), compiled.buffers())}
        records = find_records(_backend_of(compiled), weights)
    # A graph at other sizes is a graph of its own, of which there may be nothing else to tell.
    found = {(each.weights, undrawn(each.report)): each.report for each in records}
    return CompiledReport.of(list(found.values())) if found else None


def _backend_of(module: nn.Module) -> Backend | None:
    """The backend that torch.compile was given, where it is an object of fxreduce's own."""
    each: Any = getattr(getattr(module, "dynamo_ctx", None), "callback", None)
    while each is not None and not isinstance(each, Backend):
        # Under these names torch.compile's own wrappers hold what they wrap.
        wrapped = getattr(each, "_torchdynamo_orig_backend", None)
        each = getattr(each, "compiler_fn", None) if wrapped is None else wrapped
    return each
