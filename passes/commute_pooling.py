"""Average first, and let a pointwise operator work on the fewer positions that are left.

    pool(W x + b)  =  W pool(x) + b

    Before: y = conv1x1(x); z = avg_pool(y)        After: y = avg_pool(x); z = conv1x1(y)

Exact, as an average over positions is linear and mixes no channels, and as its weights sum to one;
where they do not (padding that counts, a divisor of its own) the bias must be zero. Restrictions:
the operator has one reader, one tap, no padding and stride 1; it stays where the operator before it
absorbs it. Cost: the operator's multiply-adds shrink with the map, DenseNet's transitions to a
quarter; the pooling averages the channels that the operator reads instead of those that it writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label, module_of, shape_of
from fxreduce.graph.pooling import MeanPooling, read_mean_pooling
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Conv, Operator, Refusal, on_meta
from fxreduce.operators.compose import compose
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.operators.pooling import has_bias, is_pointwise, on_rank
from fxreduce.operators.setting import settings_along
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import dearer, rewrite_matches
from fxreduce.passes.reasons import NUMBERS_ALONE, hazard


@dataclass(frozen=True)
class Match:
    """A pointwise operator whose output is averaged, and its rank behind the average."""

    call: AffineCall
    pooling: MeanPooling
    rank: int

    @property
    def channel(self) -> int:
        """The channel axis, counted from the right, of what is averaged."""
        return -self.call.operator.rank - 1


@dataclass(frozen=True)
class CommutePooling:
    """Average first, and let pointwise operators work on the fewer positions that are left."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "commute_pooling"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        decide = partial(self._decide, recorder.graph_module)
        # What stands before the operator may be pointwise too: the pooling is looked at again.
        return rewrite_matches(recorder, match, decide, _commute)

    def _decide(self, graph_module: GraphModule, found: Match) -> Match | Refusal:
        """The match, or why the operator stays before the pooling."""
        before = _absorber(graph_module, found.call, self.cost)
        if before is not None:
            return Refusal(f"{label(found.call.node)} merges with {label(before)} before it")
        operator, pooling = on_meta(found.call.operator), found.pooling
        setting, channel = setting_of(found.call), found.channel
        if max(-axis for axis in pooling.axes) > len(setting.shape):
            return Refusal("nothing tells how long the axes are that it averages over")
        apart = [(operator, setting), pooling.on(channel, setting.after(operator))]
        fewer = pooling.after(channel, setting)
        first = [pooling.on(channel, setting), (on_rank(operator, found.rank), fewer)]
        assert fewer.shape[-found.rank - 1] == operator.in_channels  # as it keeps the channel axis
        return dearer(self.cost, first, apart, at_par=False) or found


def match(recorder: Recorder, node: Node) -> Match | Refusal | None:
    """The pointwise operator whose output the node averages; None where there is none."""
    graph_module = recorder.graph_module
    pooling = read_mean_pooling(graph_module, node)
    if pooling is None:
        return None
    given = node.all_input_nodes[0] if isinstance(pooling, Refusal) else pooling.input
    call = read_affine(graph_module, given)
    if not isinstance(call, AffineCall) or not is_pointwise(call.operator):
        return None
    if isinstance(pooling, Refusal):
        return pooling
    operator = call.operator
    right = tuple(range(-operator.rank, 0))
    if -operator.rank - 1 in pooling.axes or not (pooling.is_global or pooling.axes == right):
        return None
    return _hazard(recorder.aliases, call, pooling) or Match(
        call, pooling, _rank_behind(call, pooling)
    )


def _rank_behind(call: AffineCall, pooling: MeanPooling) -> int:
    gone = () if pooling.keeps_axes else pooling.axes
    return call.operator.rank - sum(axis >= -call.operator.rank for axis in gone)


def _hazard(aliases: Aliases, call: AffineCall, pooling: MeanPooling) -> Refusal | None:
    """Why the two calls cannot change places, if they cannot."""
    if len(call.node.users) > 1:
        return Refusal(f"{label(call.node)} has {len(call.node.users)} readers")
    if has_bias(call.operator) and not pooling.keeps_constants:
        return Refusal(
            f"the bias of {label(call.node)} would count where the average counts padding or has "
            "a divisor of its own"
        )
    if call.like is None:
        return Refusal(NUMBERS_ALONE)
    rank, operator = _rank_behind(call, pooling), call.operator
    loses_batch = not pooling.keeps_axes and min(pooling.axes) < -operator.rank - 1
    if isinstance(operator, Conv) and rank and loses_batch:
        return Refusal("a convolution needs the axis over which the average is taken")
    return hazard(aliases, call)


def _absorber(graph_module: GraphModule, call: AffineCall, model: CostModel) -> Node | None:
    """The operator before the call that merges with it at no loss, and does not commute itself."""
    before = read_affine(graph_module, call.input)
    if not isinstance(before, AffineCall) or len(before.node.users) > 1:
        return None
    pair: tuple[Operator, Operator] = (on_meta(before.operator), on_meta(call.operator))
    merged = compose(*pair)
    if is_pointwise(before.operator) or isinstance(merged, Refusal):
        return None
    setting = setting_of(before)
    apart = list(zip(pair, settings_along(pair, setting), strict=True))
    return None if dearer(model, [(merged, setting)], apart) else before.node


def _commute(recorder: Recorder, found: Match) -> Node:
    """Put the pooling before the operator; returns its node."""
    call, node = found.call, found.pooling.node
    why = f"{label(call.node)} works on what is left behind {label(node)}"
    shape = shape_of(node)
    if shape is not None:
        axis = len(shape) - found.rank - 1
        shape = (*shape[:axis], call.operator.in_channels, *shape[axis + 1 :])

    pooled = recorder.again(node, call.node, call.input, call.node, shape, why)
    module = module_of(recorder.graph_module, call.node)
    if module is None or found.rank != call.operator.rank:
        module = to_module(on_rank(call.operator, found.rank), call.like)
    recorder.merge([call.node, node], pooled, module, why)
    return pooled
