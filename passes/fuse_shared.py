"""Merge an affine operator into several operators that read its value.

    g(f(x)), h(f(x))  =  compose(f, g)(x), compose(f, h)(x)

    Before: y = bn(x); u = conv(y); v = conv1x1(y)     After: u = merged(x); v = merged1x1(x)

The first operator is computed once and read several times, so that merging it means computing it
with every reader. It goes where all readers absorb it and that costs less than it does; where it
stays for other readers, those that cost less with it than behind it read its input all the same (a
narrow operator behind a wide one). Restrictions: those of `operators.compose`. Cost: one call less,
or fewer channels read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of, read_affine
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Refusal, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import CostModel, FlopsCost, costs
from fxreduce.passes.base import PassResult
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard, not_cheaper, overflow


@dataclass(frozen=True)
class Shared:
    """An affine call and the affine calls that read its value, other readers left out."""

    call: AffineCall
    readers: tuple[AffineCall, ...]


@dataclass(frozen=True)
class FuseShared:
    """Merge an affine operator into several operators that read its value."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "fuse_shared"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        # Last first: merging replaces the readers, which have then had their turn.
        for node in reversed(recorder.nodes):
            shared = match(recorder.graph_module, node) if len(node.users) > 1 else None
            if shared is not None:
                self._rewrite(recorder, shared)
        return PassResult.of(recorder)

    def _rewrite(self, recorder: Recorder, shared: Shared) -> None:
        """Merge what pays of a shared value."""
        call, aliases = shared.call, recorder.aliases
        if (refusal := hazard(aliases, call)) is not None:
            recorder.refuse(label(call.node), refusal.reason)
            return
        able: list[AffineCall] = []
        for reader in shared.readers:
            refusal = _refusal(aliases, call, reader)
            if refusal is None:
                able.append(reader)
            else:
                recorder.refuse(_pair(call, reader), refusal.reason)
        chosen = self._choose(recorder, call, able)
        for reader in chosen:
            _merge(recorder, call, reader)
        if chosen and not call.node.users:
            recorder.erase(call.node, "all that read it compute it with their own operator")

    def _choose(
        self, recorder: Recorder, call: AffineCall, readers: list[AffineCall]
    ) -> list[AffineCall]:
        """The readers that the call is merged into: all there are, the cheaper ones, or none."""
        setting = setting_of(call)
        first = on_meta(call.operator)
        candidates = [(first, setting)]
        for reader in readers:
            second = on_meta(reader.operator)
            merged = compose(first, second)
            assert not isinstance(merged, Refusal)  # those are sorted out
            candidates += [(second, setting.after(first)), (merged, setting)]
        own, *rates = costs(self.cost, candidates)
        rated = list(zip(readers, rates[::2], rates[1::2], strict=True))
        saved_by_all = own + sum(alone - together for _, alone, together in rated)
        saved_by_some = sum(max(alone - together, 0) for _, alone, together in rated)
        if len(readers) == len(call.node.users) and saved_by_all > saved_by_some:
            return readers
        for reader, alone, together in rated:
            if together >= alone:
                recorder.refuse(_pair(call, reader), self._reason(call, reader, together, alone))
        return [reader for reader, alone, together in rated if together < alone]

    def _reason(self, call: AffineCall, reader: AffineCall, merged: float, apart: float) -> str:
        others = sorted(label(user) for user in call.node.users if user is not reader.node)
        figures = not_cheaper(merged, apart, self.cost.name)
        return f"{label(call.node)} stays for {', '.join(others)}, so that {figures}"


def match(graph_module: GraphModule, node: Node) -> Shared | None:
    """The affine call that the node is and those that read it; None where there are no such."""
    call = read_affine(graph_module, node)
    if not isinstance(call, AffineCall):
        return None
    found = (read_affine(graph_module, user) for user in node.users)
    readers = tuple(each for each in found if isinstance(each, AffineCall) and each.input is node)
    return Shared(call, readers) if readers else None


def _refusal(aliases: Aliases, call: AffineCall, reader: AffineCall) -> Refusal | None:
    """Why the reader cannot compute the call's value itself, if it cannot."""
    if like_of((call, reader)) is None:
        return Refusal(NUMBERS_ALONE)
    if isinstance(refusal := hazard(aliases, reader), Refusal):
        return refusal
    if aliases.overwritten_between(call.input, call.node, reader.node):
        return Refusal(f"{label(call.input)} is overwritten in place between them")
    merged = compose(on_meta(call.operator), on_meta(reader.operator))
    if isinstance(merged, Refusal):
        return merged
    return overflow(lambda: compose(call.operator, reader.operator), like_of((call, reader)))


def _pair(call: AffineCall, reader: AffineCall) -> str:
    return f"{label(call.node)} → {label(reader.node)}"


def _merge(recorder: Recorder, call: AffineCall, reader: AffineCall) -> None:
    merged = compose(call.operator, reader.operator)
    assert not isinstance(merged, Refusal)  # its geometry has been composed
    recorder.merge(
        [reader.node],
        call.input,
        to_module(merged, like_of((call, reader))),
        f"{label(reader.node)} reads the input of {label(call.node)} itself",
        [call.node],
    )
