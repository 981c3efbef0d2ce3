"""The pipelines, each with the reason of its order."""

from __future__ import annotations

from collections.abc import Collection

from fxreduce.errors import UnsupportedError
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.passes.base import Pass, Pipeline, Repeat, pass_names
from fxreduce.passes.drop_checks import DropChecks
from fxreduce.passes.drop_identities import DropIdentities
from fxreduce.passes.fuse_chain import FuseChain
from fxreduce.passes.fuse_parallel import FuseParallel
from fxreduce.passes.pool_first import PoolFirst
from fxreduce.passes.single_assignment import SingleAssignment

# Checks and identities go first: they stand between operators, the former as readers, the latter
# hiding that two names are one tensor.
# Then every state of a tensor gets a name of its own, so that later passes need only count readers.
PREPARE: tuple[Pass, ...] = (DropChecks(), DropIdentities(), SingleAssignment())


_OWN: Pipeline = (*PREPARE, PoolFirst(), FuseChain(), FuseParallel())
_REGISTERED: list[Pass] = []


def fusion(cost: CostModel) -> Pipeline:
    """Merge all that is exact and pays.

    Poolings go first where that pays, as a pointwise operator merged into one no longer can. A
    merged chain may become a branch of a sum, and a merged sum a link of a chain: the passes take
    turns until nothing changes.
    """
    return (Repeat((PoolFirst(cost), FuseChain(cost), FuseParallel(cost), *_REGISTERED)),)


def register_pass(rewrite: Pass) -> Pass:
    """Let a pass of your own take its turn with the merging passes, checked as they are.

    Registering a pass of the same name replaces it.

    Raises:
        UnsupportedError: the pass is not exact, or has the name of a pass of fxreduce.
    """
    if not rewrite.exact:
        raise UnsupportedError(
            f"only exact passes can be registered, as merging never changes what a graph computes; "
            f"{rewrite.name!r} is not"
        )
    if rewrite.name in pass_names(_OWN):
        raise UnsupportedError(f"{rewrite.name!r} is a pass of fxreduce; choose another name")
    _REGISTERED[:] = [each for each in _REGISTERED if each.name != rewrite.name] + [rewrite]
    return rewrite


def as_disabled(disable: str | Collection[str]) -> frozenset[str]:
    """The passes that `disable` names: one, or several.

    Raises:
        UnsupportedError: a name is not that of a pass that can be skipped.
    """
    disabled = frozenset((disable,) if isinstance(disable, str) else disable)
    names = pass_names((*PREPARE, *fusion(FlopsCost())))
    if unknown := sorted(map(repr, disabled.difference(names))):
        raise UnsupportedError(
            f"disable takes names of passes ({', '.join(names)}); seen: {', '.join(unknown)}"
        )
    return disabled
