"""What is asked of one architecture: captured, sites counted, merged and equal, control noticed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import fxreduce
from benchmarks.zoo.architectures import Input, build, on_meta, smallest_input
from fxreduce.errors import CaptureError, FxReduceError, first_line
from fxreduce.graph.capture import capture_record
from fxreduce.graph.compare import difference
from fxreduce.graph.rectifiers import find_sites
from fxreduce.passes.linearise import Linearise
from fxreduce.verify import doubled

FLOAT32, FLOAT64 = 1e-5, 1e-9
# Above this many weights a model is captured and counted, on the meta device, but not merged.
LARGEST = 150_000_000
# Wrong weights to notice; more are tried where needed, as some networks hardly depend on most.
DRAWS = 3

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How an architecture is examined.

    Attributes:
        largest: the number of weights above which it is only captured and counted.
        precise: compare in float64 to 1e-9; else in float32 to 1e-5, and in float64 where rounding
            alone is larger than that. Where it is larger in float64, too, it is the bound.
        parts: what is merged: "fused", the model as it is; "half", without half of its rectifiers.
    """

    largest: int = LARGEST
    precise: bool = False
    parts: tuple[str, ...] = ("fused", "half")


def examine(name: str, settings: Settings, known: Input | None = None) -> Record:
    """The record of one architecture.

    `status` is "equal", "counted" (too large to merge here), "excluded" (not captured) or "wrong",
    which must not happen: merging changed an output, or the control was not noticed. All but the
    first have a `reason`; it has one where a site stays, or where the model amplifies rounding so
    much that no comparison is closer, see `fxreduce.verify`.
    """
    try:
        chosen = known or smallest_input(name)
    except Exception as error:
        return {"status": "excluded", "reason": _said("no input", error)}
    record: Record = {"input": chosen.as_json()}
    weights = sum(p.numel() for p in on_meta(name, chosen).parameters())
    record["weights"] = weights
    small = weights <= settings.largest
    torch.manual_seed(0)  # or every process drew other weights
    model = randomised(build(name, chosen)) if small else on_meta(name, chosen)
    x = chosen.random(torch.Generator().manual_seed(1), 2)
    if small and settings.precise:  # before it is captured, as torch.export keeps the dtype
        model, x = model.double(), x.double()
    try:
        captured = fxreduce.capture(model, x if small else x.to("meta"))
    except (FxReduceError, RuntimeError) as error:
        return record | {"status": "excluded", "reason": _said("not captured", error)}
    record["rung"] = capture_record(captured).rung
    record["sites"] = len(find_sites(captured))
    if not small:
        reason = f"{weights:,} weights; only {settings.largest:,} are merged in such a run"
        if not settings.largest:
            reason = "captured and counted; not merged yet"
        return record | {"status": "counted", "reason": reason}
    try:
        return record | _merged(model, captured, chosen, settings)
    except FxReduceError as error:
        return record | {"status": "wrong", "reason": _said("not merged", error)}


def _merged(model: nn.Module, captured: GraphModule, chosen: Input, settings: Settings) -> Record:
    """Merge the model as it is, and without half of its rectifiers; compare both, and a control."""
    precise, (half, kept) = settings.precise, _removable(captured)
    allowed = FLOAT64 if precise else FLOAT32
    dtype = next(model.parameters()).dtype
    x, fresh = (
        chosen.random(torch.Generator().manual_seed(seed), batch).to(dtype)
        for seed, batch in ((1, 2), (2, 3))
    )
    record: Record = {}
    remarks = [kept] if kept and "half" in settings.parts else []
    for key in settings.parts:
        sites = half if key == "half" else ()
        unmerged = fxreduce.linearize(captured, sites) if sites else captured
        merged = fxreduce.fuse(unmerged, example_inputs=x)
        report = fxreduce.report(merged)
        record["operators" if key == "fused" else "half"] = [
            report.operators_before,
            report.operators_after,
        ]
        reference = unmerged if sites else model
        expected = _output(reference, fresh)
        found = _apart(expected, merged, fresh)
        record[f"{key}_error"] = found
        if not found <= allowed:
            closer = _closer(reference, unmerged, merged, x, fresh)
            record[f"{key}_in"] = "float64" if closer.max_rel <= FLOAT64 else "rounding"
            if not closer.ok:
                return record | {"status": "wrong", "reason": f"{key}: off by {found:.3g} relative"}
            if closer.max_rel > FLOAT64:
                remarks.append(
                    f"{key}: as close as rounding its weights lets it be: {closer.max_rel:.1g}"
                )
        if key == settings.parts[0]:
            record["control"] = noticed = _noticed(expected, merged, fresh, allowed)
            if not noticed:
                return record | {"status": "wrong", "reason": "a wrong weight was not noticed"}
    return record | {"status": "equal"} | ({"reason": "; ".join(remarks)} if remarks else {})


def _removable(captured: GraphModule) -> tuple[tuple[str, ...], str]:
    """Half of the sites, without those that cannot be removed, and why the first cannot."""
    half = tuple(site.name for site in find_sites(captured)[::2])
    refusals = Linearise(half).run(captured).refusals
    refused = {each.where for each in refusals}
    said = f"{refusals[0].where} stays: {refusals[0].reason}" if refusals else ""
    return tuple(name for name in half if name not in refused), said


def _closer(
    reference: nn.Module, unmerged: GraphModule, merged: GraphModule, x: Tensor, fresh: Tensor
) -> fxreduce.Equivalence:
    """Merged again and compared in float64, unless the graph is bound to its dtype."""
    try:
        again = fxreduce.fuse(doubled(unmerged), example_inputs=x.double())
    except CaptureError:
        return fxreduce.verify(reference, merged, fresh)
    return fxreduce.verify(doubled(reference), again, fresh.double())


def randomised(model: nn.Module) -> nn.Module:
    """The model, its constant weights and its batch-norms' statistics drawn from a fixed seed.

    Libraries begin with scales of zero and one, behind which a wrong merge would not be seen.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
                if float(tensor.flatten()[0]) == 0:
                    inputs = math.prod(tensor.shape[1:])  # 1 of a single number, too
                    tensor.normal_(0, 0.2 / math.sqrt(inputs), generator=generator)
                else:
                    tensor.uniform_(0.5, 1.5, generator=generator)
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def _noticed(expected: Any, merged: GraphModule, x: Tensor, allowed: float) -> int:
    """How many wrong weights of the merged model move its output by more than allowed.

    `DRAWS` end the search. Each is one number of a weight that is drawn, moved by the largest of
    them: the one that the output depends on most, as many others see nothing but padding or
    rectifiers that are off.
    """
    weights = [p for p in merged.parameters() if p.dim() > 1]
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(3))
    drawn = [weights[index] for index in order.tolist()]
    count = 0
    for weight, gradient in zip(drawn, _gradients(merged, drawn, x), strict=True):
        if gradient is None:
            continue
        place = torch.unravel_index(gradient.abs().argmax(), gradient.shape)
        tensor = weight.detach()
        kept = float(tensor[place])
        tensor[place] += float(tensor.abs().max())
        count += not _apart(expected, merged, x) <= allowed
        tensor[place] = kept
        if count == DRAWS:
            break
    return count


def _gradients(module: GraphModule, weights: list[Tensor], x: Tensor) -> Sequence[Tensor | None]:
    """The gradients of the sum of the outputs' squares, and none by what they do not depend on."""
    for parameter in module.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    leaves = pytree.tree_leaves(module(x.clone()))
    total = sum(leaf.square().sum() for leaf in leaves if leaf.is_floating_point())
    if not weights or not isinstance(total, Tensor) or not total.requires_grad:
        return [None] * len(weights)
    return torch.autograd.grad(total, weights, allow_unused=True)


def _output(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x.clone())


def _apart(expected: Any, other: nn.Module, x: Tensor) -> float:
    return difference(expected, _output(other, x)).max_rel


def _said(what: str, error: Exception) -> str:
    return f"{what}: {first_line(error)[:400]}"
