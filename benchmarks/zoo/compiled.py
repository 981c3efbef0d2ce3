"""What is asked of one architecture behind torch.compile: equal outputs, whatever changes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import fxreduce
from benchmarks.zoo.architectures import Input, build, smallest_input
from benchmarks.zoo.examine import FLOAT64, Record, Settings, randomised
from fxreduce.errors import EquivalenceError, first_line
from fxreduce.graph.compare import difference
from fxreduce.graph.rectifiers import find_sites

INNER = "aot_eager"
BATCHES = (2, 3)


def compile_and_compare(name: str, settings: Settings, known: Input | None = None) -> Record:
    """The record of one architecture behind `torch.compile(model, backend=fxreduce.backend())`.

    In float64: the model as it is, and as captured without half of its rectifiers, as far as
    `settings.parts` asks for them. Each is called, called again after all its weights have been
    written in place, and called with a batch of another size; batches are told to be dynamic, so
    that one compilation serves them all where the model allows for that.

    `status` is "equal", "excluded" where torch.compile itself, without fxreduce, does not get
    through or changes the output, and "wrong", which must not happen. The others have a `reason`.
    """
    chosen = known or smallest_input(name)
    model = randomised(build(name, chosen)).double()
    record: Record = {"input": chosen.as_json()}
    record["weights"] = sum(each.numel() for each in model.parameters())
    for part in settings.parts:
        examined = model if part == "fused" else _without_half(model, chosen)
        try:
            record[f"{part}_error"], report = _compared(examined, chosen, fxreduce.backend(INNER))
        except Exception as error:
            if (reason := _stock_fails(examined, chosen)) is not None:
                reason = f"{part}: {INNER} alone: {reason}"
                return record | {"status": "excluded", "reason": reason}
            return record | {"status": "wrong", "reason": f"{part}: {_said(error)}"}
        key = "operators" if part == "fused" else part
        record[key] = [report.operators_before, report.operators_after]
        record[f"{part}_graphs"], record[f"{part}_sites"] = len(report.graphs), len(report.sites)
    return record | {"status": "equal"}


def _compared(model: nn.Module, chosen: Input, backend: Any) -> tuple[float, Any]:
    """The largest relative deviation from the uncompiled model, and what was done with the graphs.

    Raises:
        EquivalenceError: it is more than rounding explains, or new weights change nothing.
    """
    torch.compiler.reset()
    model = copy.deepcopy(model)  # as its weights are overwritten
    compiled = torch.compile(model, backend=backend)
    x, *others = (
        chosen.random(torch.Generator().manual_seed(seed), batch).double()
        for seed, batch in enumerate(BATCHES, 1)
    )
    with torch.no_grad():
        before = model(x.clone())
        largest = _apart(before, compiled(_growing(x)), "at first")
        _write_in_place(model)
        after = model(x.clone())
        if difference(before, after).max_rel <= FLOAT64:
            raise EquivalenceError("new weights change nothing")
        largest = max(largest, _apart(after, compiled(_growing(x)), "after an update in place"))
        for y in others:
            found = _apart(model(y.clone()), compiled(_growing(y)), f"with a batch of {len(y)}")
            largest = max(largest, found)
        return largest, fxreduce.report(compiled) if backend != INNER else None


def _apart(expected: Any, seen: Any, when: str) -> float:
    found = difference(expected, seen).max_rel
    if not found <= FLOAT64:
        raise EquivalenceError(f"off by {found:.3g} relative {when}")
    return found


def _growing(x: Tensor) -> Tensor:
    """A copy whose batch may be another one at the next call."""
    x = x.clone()
    torch._dynamo.maybe_mark_dynamic(x, 0)
    return x


def _write_in_place(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for each in model.parameters():
        each.mul_(torch.empty_like(each).uniform_(0.9, 1.1, generator=generator))


def _without_half(model: nn.Module, chosen: Input) -> nn.Module:
    x: Tensor = chosen.random(torch.Generator().manual_seed(1), BATCHES[0]).double()
    captured = fxreduce.capture(model, x)
    return fxreduce.linearize(captured, [site.name for site in find_sites(captured)[::2]])


def _stock_fails(model: nn.Module, chosen: Input) -> str | None:
    """What torch.compile's own compiler raises, or is off by, if so."""
    try:
        _compared(model, chosen, INNER)
    except Exception as error:
        return _said(error)
    return None


def _said(error: Exception) -> str:
    """What an error says, or what it wraps, as torch.compile does with those of backends."""
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {first_line(cause)[:400]}"
