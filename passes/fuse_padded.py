"""Merge a convolution and the padded one behind it, with a correction at the border.

    conv2(conv1(x))  =  inside(x), but for the outputs that see the padding of conv2

    Before: y = conv3x3(x); z = conv3x3(y)           After: z = border_corrected(x)

The outputs near the border are computed by both convolutions on slices of the input, so that the
result is exact for every size. It pays where the merged kernel is cheap: few channels in front, or
strides. Restrictions: those of `operators.border.compose_inside`; one reader in between. Such a
module merges with nothing else, so that all other merges are made before. Cost: one large call
instead of two, and four small ones of each for an image, which the cost model "flops" takes for
more than they count (`FlopsCost.per_slice`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.graph.affine import AffineCall, like_of, read_affine
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.operators.affine import Conv, Refusal, on_meta
from fxreduce.operators.border import compose_inside, strip_calls
from fxreduce.operators.cost import CostModel, FlopsCost
from fxreduce.passes.base import PassResult
from fxreduce.passes.matching import dearer
from fxreduce.passes.reasons import hazard, overflow


@dataclass(frozen=True)
class Pair:
    """A convolution, and the padded one that alone reads it."""

    first: AffineCall
    second: AffineCall
    operators: tuple[Conv, Conv]


@dataclass(frozen=True)
class FusePadded:
    """Merge a convolution and the padded one behind it, with a correction at the border."""

    cost: CostModel = field(default_factory=FlopsCost)
    name: ClassVar[str] = "fuse_padded"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            pair = match(recorder.graph_module, node)
            if pair is None:
                continue
            refusal = pair if isinstance(pair, Refusal) else self._refusal(recorder.aliases, pair)
            if refusal is not None:
                before = next(iter(node.all_input_nodes))
                recorder.refuse(f"{label(before)} → {label(node)}", refusal.reason)
            elif isinstance(pair, Pair):
                _replace(recorder, pair)
        return PassResult.of(recorder)

    def _refusal(self, aliases: Aliases, pair: Pair) -> Refusal | None:
        """Why the two stay apart, if they do: not exact, or not cheaper."""
        for call in (pair.first, pair.second):
            if (refusal := hazard(aliases, call)) is not None:
                return refusal
        f, g = (on_meta(operator) for operator in pair.operators)
        merged, setting = compose_inside(f, g), setting_of(pair.first)
        if isinstance(merged, Refusal):
            return merged
        border = strip_calls(f, g, setting)
        if border is None:
            return Refusal(f"in an input of shape {setting.shape} nothing lies inside the border")
        apart = [(f, setting), (g, setting.after(f))]
        refusal = dearer(self.cost, [(merged, setting), *border], apart, at_par=False)
        if refusal is not None:
            return Refusal(f"with its border corrected, {refusal.reason}")
        like = like_of((pair.first, pair.second))
        return overflow(lambda: compose_inside(*pair.operators), like)


def match(graph_module: GraphModule, node: Node) -> Pair | Refusal | None:
    """The pair that ends in the node, where its second convolution pads what the first computes.

    A refusal where the operator in front cannot be merged at all; None where there is no pair.
    """
    second = read_affine(graph_module, node)
    if not isinstance(second, AffineCall) or not isinstance(second.operator, Conv):
        return None
    first = read_affine(graph_module, second.input)
    if isinstance(first, Refusal):
        return first
    if not isinstance(first, AffineCall) or not isinstance(first.operator, Conv):
        return None
    pads = second.operator.is_padded and not first.operator.is_pointwise
    if not pads or len(first.node.users) > 1 or first.operator.rank != second.operator.rank:
        return None
    return Pair(first, second, (first.operator, second.operator))


def _replace(recorder: Recorder, pair: Pair) -> None:
    inside = compose_inside(*pair.operators)
    assert isinstance(inside, Conv)  # its geometry has been composed
    calls = (pair.first, pair.second)
    module = BorderCorrectedConv(inside, *pair.operators, like_of(calls))
    recorder.merge(
        [call.node for call in calls],
        pair.first.input,
        module,
        f"one operator, corrected at its border, instead of {' and '.join(map(_name, calls))}",
    )


def _name(call: AffineCall) -> str:
    return label(call.node)
