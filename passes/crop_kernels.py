"""Let one convolution take the place of two, with the middle of the kernel that they make together.

    Before: y = conv3x3(x); z = conv3x3(y)        After: z = conv3x3'(x), instead of a 5×5

Not exact: the rim of the merged kernel is left out, and what the padding in between did; the
weights are meant to be fitted afterwards. The output has the same size for every input.
Restrictions: convolutions with zero padding, of which the second alone reads the first. Cost: that
of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch.fx import GraphModule

from fxreduce.graph.affine import like_of
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.setting import setting_of
from fxreduce.graph.values import VALUE
from fxreduce.operators.affine import Conv, Refusal, on_meta
from fxreduce.operators.border import compose_inside
from fxreduce.operators.cost import CostModel
from fxreduce.passes import matching
from fxreduce.passes.base import PassResult
from fxreduce.passes.fuse_padded import Pair, match
from fxreduce.passes.reasons import hazard, overflow


@dataclass(frozen=True)
class CropKernels:
    """Merge convolutions whose values are named, and crop the kernels.

    Attributes:
        values: of the second convolutions, see `fxreduce.graph.values`. `dearer` tells where it
            does not pay.
    """

    values: tuple[str, ...] = ()
    name: ClassVar[str] = "crop_kernels"
    exact: ClassVar[bool] = False

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            if node.meta.get(VALUE) not in self.values:
                continue
            pair = match(recorder.graph_module, node)
            if isinstance(pair, Pair):
                refusal = _hazard(recorder, pair) or _replace(recorder, pair)
            else:
                refusal = pair
            if refusal is not None:
                recorder.refuse(label(node), refusal.reason)
        return PassResult.of(recorder)


def cropped(f: Conv, g: Conv) -> Conv | Refusal:
    """The middle of the kernel of f then g, as large as the larger of theirs.

    Returns:
        A new operator in float64 (for operators on the meta device: its geometry), or a `Refusal`.
    """
    merged = compose_inside(_even(f), _even(g))
    if isinstance(merged, Refusal):
        return merged
    weight, padding = merged.weight, list(merged.padding)
    for axis, (whole, one, two) in enumerate(zip(merged.kernel, f.kernel, g.kernel, strict=True)):
        # One tap less on both sides goes with less padding, so that the output keeps its size.
        rim = min((whole - max(one, two)) // 2, padding[axis] // merged.dilation[axis])
        weight = weight.narrow(axis + 2, rim, whole - 2 * rim)
        padding[axis] -= rim * merged.dilation[axis]
    return replace(merged, weight=weight, padding=tuple(padding))


def _even(operator: Conv) -> Conv:
    """The operator with the bias of its inside at the border, too."""
    if operator.border is None:
        return operator
    inside = operator.border.flatten(1).sum(1)
    bias = inside if operator.bias is None else operator.bias + inside
    return replace(operator, bias=bias, border=None)


def dearer(pair: Pair, cost: CostModel) -> Refusal | None:
    """Why one convolution for the pair is not worth it, if so."""
    f, g = (on_meta(operator) for operator in pair.operators)
    merged, setting = cropped(f, g), setting_of(pair.first)
    if isinstance(merged, Refusal):
        return merged
    apart = [(f, setting), (g, setting.after(f))]
    return matching.dearer(cost, [(merged, setting)], apart, at_par=False)


def _hazard(recorder: Recorder, pair: Pair) -> Refusal | None:
    found = (hazard(recorder.aliases, call) for call in (pair.first, pair.second))
    return next((refusal for refusal in found if refusal is not None), None)


def _replace(recorder: Recorder, pair: Pair) -> Refusal | None:
    operator = cropped(*pair.operators)
    if isinstance(operator, Refusal):
        return operator
    calls = (pair.first, pair.second)
    if refusal := overflow(lambda: operator, like_of(calls)):
        return refusal
    module = to_module(operator, like_of(calls))
    why = f"one cropped convolution instead of {' and '.join(label(call.node) for call in calls)}"
    recorder.merge([call.node for call in calls], pair.first.input, module, why)
    return None
