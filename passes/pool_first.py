"""Let a mean pooling run before the pointwise operators that it follows: fewer positions are left.

    pool(W x + b)  =  W pool(x) + b

    Before: y = conv1x1(x); z = pool(y)        After: p = pool(x); z = conv1x1(p)

Merging the two into one strided convolution would save no multiply-add, as its kernel is as much
larger as its output is smaller; in this order the pointwise operator runs on the pooled positions
alone. Restrictions: the pooling has a stride and reads each value alone; behind a bias it neither
pads nor divides by a number of its own. It must pay: the pooling then runs on the channels that the
pointwise operator reads. Source: pooling is linear, alike in every channel, and a mean of constants
is the constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isclose, prod
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.nodes import label, shape_of
from fxreduce.graph.read_pool import calls_mean_pool
from fxreduce.graph.recorder import Recorder
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, on_meta
from fxreduce.operators.cost import CostModel, FlopsCost, chain_cost
from fxreduce.operators.pool import mean_pool
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_chain import hazard


@dataclass(frozen=True)
class Pooled:
    """A pointwise operator whose value only a pooling reads."""

    pointwise: AffineCall
    pooling: AffineCall
    pool: Conv


@dataclass(frozen=True)
class PoolFirst:
    """Let a mean pooling run before the pointwise operators that it follows."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "pool_first"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            while (found := match(recorder.graph_module, node)) is not None:
                reason = found if isinstance(found, Refusal) else self._refusal(found)
                if reason is not None:
                    recorder.refuse(label(node), reason.reason)
                    break
                assert isinstance(found, Pooled)  # as it is no refusal
                first, second = found.pointwise, found.pooling
                recorder.swap(
                    first.node,
                    second.node,
                    first.input,
                    _pooled_shape(found),
                    f"{label(second.node)} leaves {label(first.node)} fewer positions",
                )
        return PassResult.of(recorder)

    def _refusal(self, found: Pooled) -> Refusal | None:
        """Why the pooling stays where it is, if it does: not exact, or not cheaper."""
        f, pool = found.pointwise.operator, found.pool
        if _has_bias(f) and (pool.is_padded or not isclose(float(pool.weight[0].sum()), 1)):
            return Refusal(
                "the bias before it would not be pooled to itself: it pads by "
                f"{pool.padding} and sums to {float(pool.weight[0].sum()):.3g} of a constant"
            )
        pooled = mean_pool(f.in_channels, pool.kernel, pool.stride, pool.padding)
        now = chain_cost([on_meta(f), on_meta(pool)], self.cost)
        then = chain_cost([on_meta(pooled), on_meta(f)], self.cost)
        if then >= now:
            return Refusal(
                f"pooling first costs {then:,.0f} for each output position, as it is {now:,.0f}"
            )
        return None


def match(graph_module: GraphModule, node: Node) -> Pooled | Refusal | None:
    """The pointwise operator that the node pools; None where it is no strided mean of one."""
    if not calls_mean_pool(graph_module, node):
        return None
    pooling = read_affine(graph_module, node)
    if not isinstance(pooling, AffineCall) or not isinstance(pooling.operator, Conv):
        return None
    before = read_affine(graph_module, pooling.input)
    if not isinstance(before, AffineCall) or not _is_pointwise(before.operator):
        return None
    pool = pooling.operator
    if prod(pool.stride) == 1 or before.operator.rank != pool.rank:
        return None
    if len(before.node.users) > 1:
        return Refusal(f"{label(before.node)} has {len(before.node.users)} readers")
    return hazard(Aliases(graph_module), before) or Pooled(before, pooling, pool)


def _pooled_shape(found: Pooled) -> tuple[int, ...] | None:
    """The shape of the pooling's value once it is computed first: of other channels than now."""
    shape, rank = shape_of(found.pooling.node), found.pool.rank
    if shape is None:
        return None
    return (*shape[: -rank - 1], found.pointwise.operator.in_channels, *shape[-rank:])


def _is_pointwise(operator: Operator) -> bool:
    return isinstance(operator, ScaleShift) or (
        operator.is_pointwise and max(operator.stride, default=1) == 1
    )


def _has_bias(operator: Operator) -> bool:
    if isinstance(operator, ScaleShift):
        return operator.has_shift
    return operator.bias is not None
