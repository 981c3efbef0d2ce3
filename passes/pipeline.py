"""The pipelines, each with the reason of its order."""

from __future__ import annotations

from collections.abc import Collection

from fxreduce.errors import UnsupportedError
from fxreduce.extensions import load_extensions
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.passes.base import Pass, Pipeline, Repeat, pass_names
from fxreduce.passes.commute_pooling import CommutePooling
from fxreduce.passes.drop_checks import DropChecks
from fxreduce.passes.drop_identities import DropIdentities
from fxreduce.passes.drop_reshapes import DropReshapes
from fxreduce.passes.fold_norm import FoldNorm
from fxreduce.passes.fold_scale import FoldScale
from fxreduce.passes.fold_weights import FoldWeights
from fxreduce.passes.fuse_chain import FuseChain
from fxreduce.passes.fuse_flatten import FuseFlatten
from fxreduce.passes.fuse_padded import FusePadded
from fxreduce.passes.fuse_parallel import FuseParallel
from fxreduce.passes.fuse_region import FuseRegion
from fxreduce.passes.fuse_shared import FuseShared
from fxreduce.passes.scale_cat import ScaleCat
from fxreduce.passes.single_assignment import SingleAssignment
from fxreduce.passes.split_cat import SplitCat
from fxreduce.passes.stack_siblings import StackSiblings

# Checks and identities go first: they stand between operators, the former as readers, the latter
# hiding that two names are one tensor.
# Then every state of a tensor gets a name of its own, so that later passes need only count readers.
PREPARE: tuple[Pass, ...] = (DropChecks(), DropIdentities(), SingleAssignment())

# Weights become constants only where merging begins, as they are trained by what they come from.
CONSTANTS: tuple[Pass, ...] = (FoldWeights(),)

_REGISTERED: list[Pass] = []


def merging(cost: CostModel) -> tuple[Pass, ...]:
    """The passes that take turns until nothing changes.

    A merged chain may become a branch of a sum, and a merged sum a link of a chain.
    """
    return (
        # Between operators that map rows, where a rectifier of tokens has been removed.
        DropReshapes(),
        # Before it could be merged into the windows of an average, what is cheaper behind it.
        CommutePooling(cost),
        # Before steps that each pay could take what is cheaper otherwise.
        FuseRegion(cost),
        FuseChain(cost),
        FuseParallel(cost),
        # The average may have brought an operator next to a flattening.
        FuseFlatten(cost),
        # What structure keeps from an operator, a scale or a norm's affine part, goes into what the
        # chains have become, once and not once for each link.
        FoldScale(cost),
        FoldNorm(),
        # Operands' own operators are as short as they get; what is left behind a concatenation is
        # one scale-shift, or one operator to split, and siblings are split off as one.
        ScaleCat(cost),
        StackSiblings(cost),
        SplitCat(cost),
        # What several operators read goes into them last, as branches that merge are fewer readers.
        FuseShared(cost),
    )


def finishing(cost: CostModel) -> tuple[Pass, ...]:
    """The passes whose results merge with nothing else, so that they run when all else is done."""
    return (FusePadded(cost),)


def unfinished(cost: CostModel) -> Pipeline:
    """Merge all that is exact and pays, but for what merges with nothing else."""
    load_extensions("passes")
    return (*CONSTANTS, Repeat((*merging(cost), *_REGISTERED)))


def fusion(cost: CostModel) -> Pipeline:
    """Merge all that is exact and pays."""
    return (*unfinished(cost), *finishing(cost))


_OWN: Pipeline = (*PREPARE, *CONSTANTS, *merging(FlopsCost()), *finishing(FlopsCost()))


def register_pass(rewrite: Pass) -> Pass:
    """Let a pass of your own take its turn with the merging passes, checked as they are.

    Registering a pass of the same name replaces it.

    Args:
        rewrite: see `fxreduce.passes.base.Pass`.

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
