"""Fold the affine part of a LayerNorm or RMSNorm into the operators that read it.

    W (gamma n(x) + beta) + b  =  (W diag(gamma)) n(x) + (b + W beta)

    Before: y = layer_norm(x, gamma, beta); q = linear(y); k = linear(y)
    After:  y = layer_norm(x); q = folded(y); k = folded(y)

Restrictions: the norm is of the last axis, and every reader is a Linear or a convolution that pads
nothing, directly or behind structure that keeps the channels apart (`graph.structure`). Cost: that
of the affine part is saved. Source: `operators.compose` with a scale-shift in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label, reads_facts
from fxreduce.graph.norms import NormCall, read_norm
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.structure import Carried, carry, is_structural
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift
from fxreduce.operators.compose import compose
from fxreduce.passes.base import PassResult
from fxreduce.passes.reasons import hazard, overflow


@dataclass(frozen=True)
class Reader:
    """An operator that reads a norm, and the norm's affine part as it is in what it reads."""

    call: AffineCall
    affine: ScaleShift

    @property
    def folded(self) -> Operator | Refusal:
        """The operator with the affine part folded in."""
        return compose(self.affine, self.call.operator)


@dataclass(frozen=True)
class Match:
    """A norm and all that reads it."""

    norm: NormCall
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class FoldNorm:
    """Fold the affine part of a LayerNorm or RMSNorm into the operators that read it."""

    name: ClassVar[str] = "fold_norm"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            found = match(recorder, node)
            if isinstance(found, Refusal):
                recorder.refuse(label(node), found.reason)
            elif found is not None:
                _replace(recorder, found)
        return PassResult.of(recorder)


def match(recorder: Recorder, node: Node) -> Match | Refusal | None:
    """The norm that the node calls, with its readers; None where it has no affine part."""
    graph_module = recorder.graph_module
    norm = read_norm(graph_module, node)
    if norm is None or isinstance(norm, Refusal):
        return norm
    aliases = recorder.aliases
    if changed := aliases.changed_constant(node):
        return Refusal(f"the graph overwrites {changed.target}, which it reads")
    readers: list[Reader] = []
    for user, found in _readers(graph_module, norm, ()):
        reason = found if isinstance(found, Refusal) else _obstacle(aliases, norm, found)
        if reason is not None:
            return Refusal(f"{label(user)} reads it: {reason.reason}")
        if isinstance(found, Reader):
            readers.append(found)
    return Match(norm, tuple(readers)) if readers else None


def _readers(
    graph_module: GraphModule, norm: NormCall, path: tuple[Node, ...]
) -> Iterator[tuple[Node, Reader | Refusal]]:
    """Who reads the norm, behind the path of structure: an operator, or a refusal."""
    for user in (norm.nodes[-1], *path)[-1].users:
        call = read_affine(graph_module, user)
        if isinstance(call, AffineCall):
            carried = carry(graph_module, path, Carried.of(norm.affine))
            if isinstance(carried, Carried):
                yield user, Reader(call, carried.place(norm.affine))
            else:
                yield user, carried
        elif call is None and is_structural(graph_module, user):
            yield from _readers(graph_module, norm, (*path, user))
        elif not reads_facts(user):
            yield user, call or Refusal("not an affine operator")


def _obstacle(aliases: Aliases, norm: NormCall, reader: Reader) -> Refusal | None:
    """Why the norm's affine part does not go into the reader, if so."""
    call = reader.call
    if reason := hazard(aliases, call):
        return reason
    if call.like is not None and call.like.dtype != norm.like.dtype:
        return Refusal(f"its weights are {call.like.dtype}, the norm's {norm.like.dtype}")
    folded = reader.folded
    if isinstance(folded, Refusal):
        return folded
    if _has_border(folded) and not _has_border(call.operator):
        return Refusal("it pads with zeros, which the norm's shift would have to leave out")
    return overflow(lambda: folded, norm.like if call.like is None else call.like)


def _has_border(operator: Operator) -> bool:
    return isinstance(operator, Conv) and operator.border is not None


def _replace(recorder: Recorder, found: Match) -> None:
    norm = found.norm
    name = label(norm.nodes[0])
    for reader in found.readers:
        folded, call = reader.folded, reader.call
        assert not isinstance(folded, Refusal)  # it was composed when it was matched
        like = norm.like if call.like is None else call.like
        why = f"{label(call.node)} with the affine part of {name}"
        recorder.merge([call.node], call.input, to_module(folded, like), why, norm.nodes)
    recorder.merge(norm.nodes, norm.input, norm.plain, f"{name} without its affine part")
