"""The kinds of exact rewrites: for each a strategy of models that hold it, and what makes it.

Every model is float64, small, and holds what the kind is about exactly once; its input is of a size
that it runs on. `tests/passes/test_rewrites.py` proves of each that it is made, and is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from networks import Wiring
from strategies import CHANNELS, norms, per_axis, scale_shifts, sides, tensors
from torch import Tensor, nn

from fxreduce.graph.modules import to_module
from fxreduce.operators.affine import Conv, Operator
from fxreduce.operators.cost import FlopsCost
from fxreduce.operators.setting import Setting
from fxreduce.passes.base import Pass
from fxreduce.passes.commute_pooling import CommutePooling
from fxreduce.passes.drop_identities import DropIdentities
from fxreduce.passes.drop_reshapes import DropReshapes
from fxreduce.passes.fold_norm import FoldNorm
from fxreduce.passes.fold_scale import FoldScale
from fxreduce.passes.fold_weights import FoldWeights
from fxreduce.passes.fuse_chain import FuseChain
from fxreduce.passes.fuse_flatten import FuseFlatten
from fxreduce.passes.fuse_padded import FusePadded
from fxreduce.passes.fuse_parallel import FuseParallel
from fxreduce.passes.fuse_shared import FuseShared
from fxreduce.passes.scale_cat import ScaleCat
from fxreduce.passes.single_assignment import SingleAssignment
from fxreduce.passes.split_cat import SplitCat
from fxreduce.passes.stack_siblings import StackSiblings

Case = tuple[nn.Module, Tensor]
RANKS = st.integers(1, 3)
WIDTHS = st.sampled_from(CHANNELS)


@dataclass(frozen=True)
class Calls:
    """Every operator costs the same: each merge that is exact pays, or with -1 each that adds."""

    each: float = 1.0
    name: str = "calls"

    def cost(self, operator: Operator, setting: Setting) -> float:
        return self.each


@dataclass(frozen=True)
class Rewrite:
    """One kind.

    Attributes:
        cases: models that hold it, each with an input.
        by: the pass that makes it.
    """

    cases: SearchStrategy[Case]
    by: Pass


REWRITES: dict[str, Rewrite] = {}


def kind(by: Pass) -> Callable[[Callable[[DrawFn], Case]], Callable[[DrawFn], Case]]:
    """Enter a kind under the words of its function's name."""

    def enter(cases: Callable[[DrawFn], Case]) -> Callable[[DrawFn], Case]:
        REWRITES[cases.__name__.replace("_", " ")] = Rewrite(st.composite(cases)(), by)
        return cases

    return enter


def module(operator: Operator) -> nn.Module:
    return to_module(operator, torch.empty(0, dtype=torch.float64))


def chain(*operators: Operator) -> nn.Module:
    return nn.Sequential(*map(module, operators)).eval()


def image(draw: DrawFn, channels: int, rank: int, low: int = 6, high: int = 9) -> Tensor:
    """An input that is larger than any kernel drawn here; rank 0: tokens."""
    if rank == 0:
        return draw(tensors(2, 3, channels))
    size = draw(per_axis(rank, low, high if rank < 3 else low + 1))
    return draw(tensors(draw(st.integers(1, 2)), channels, *size))


def kernel(
    draw: DrawFn,
    rank: int,
    into: int,
    out: int | None = None,
    *,
    size: tuple[int, int] = (1, 3),
    stride: tuple[int, int] = (1, 2),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    grouped: bool | None = None,
    bias: bool | None = None,
    **options: Any,
) -> Conv:
    """A convolution whose sizes lie within bounds; groups and bias are drawn where not told."""
    out = draw(WIDTHS) if out is None else out
    fits = [n for n in CHANNELS if into % n == 0 == out % n]
    groups = draw(st.sampled_from(fits)) if grouped is None else max(fits) if grouped else 1
    groups = groups if rank else 1
    shape = draw(per_axis(rank, *size))
    transposed = options.get("transposed", False)
    sizes = (into, out // groups) if transposed else (out, into // groups)
    has_bias = draw(st.booleans()) if bias is None else bias
    return Conv(
        draw(tensors(*sizes, *shape)),
        draw(tensors(out)) if has_bias else None,
        draw(per_axis(rank, *stride)),
        draw(per_axis(rank, *padding)),
        draw(per_axis(rank, *dilation)),
        groups,
        **options,
    )


def ends(draw: DrawFn, low_rank: int = 1) -> tuple[int, int]:
    """A spatial rank, and input channels."""
    return draw(st.integers(low_rank, 3)), draw(WIDTHS)


# Chains


@kind(FuseChain(Calls()))
def convolution_then_batch_norm(draw: DrawFn) -> Case:
    rank, channels = ends(draw, 0)
    f = kernel(draw, rank, channels, padding=(0, 2), dilation=(1, 2))
    return chain(f, draw(scale_shifts(rank, f.out_channels))), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def batch_norm_then_padded_convolution(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    g = kernel(draw, rank, channels, size=(2, 3), padding=(1, 2), dilation=(1, 2))
    return chain(draw(scale_shifts(rank, channels)), g), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def pointwise_with_bias_then_padded_convolution(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, size=(1, 1), bias=True)
    g = kernel(draw, rank, f.out_channels, size=(2, 3), padding=(1, 2))
    return chain(f, g), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def padded_convolution_then_unpadded_one(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, padding=(0, 2), stride=(1, 1), dilation=(1, 2))
    g = kernel(draw, rank, f.out_channels, size=(1, 2))
    return chain(f, g), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def strided_and_dilated_convolutions(draw: DrawFn) -> Case:
    rank, channels = draw(st.integers(1, 2)), draw(WIDTHS)
    f = kernel(draw, rank, channels, stride=(2, 3), dilation=(1, 3), padding=(0, 1))
    g = kernel(draw, rank, f.out_channels, size=(2, 2), dilation=(1, 2))
    return chain(f, g), image(draw, channels, rank, 16, 19)


@kind(FuseChain(Calls()))
def expand_depthwise_project(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    wide = draw(st.sampled_from((4, 6)))
    expand = kernel(draw, rank, channels, wide, size=(1, 1), stride=(1, 1), grouped=False)
    depthwise = kernel(draw, rank, wide, wide, size=(2, 3), padding=(0, 1), grouped=True)
    project = kernel(draw, rank, wide, channels, size=(1, 1), stride=(1, 1), grouped=False)
    shift = draw(scale_shifts(rank, wide))
    return chain(expand, shift, depthwise, project), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def nested_groups(draw: DrawFn) -> Case:
    rank = draw(RANKS)
    into, middle, out = (draw(st.sampled_from((4, 6, 12))) for _ in range(3))
    f = kernel(draw, rank, into, middle, stride=(1, 1))
    return chain(f, kernel(draw, rank, middle, out)), image(draw, into, rank)


@kind(FuseChain(Calls()))
def linear_then_linear(draw: DrawFn) -> Case:
    f = kernel(draw, 0, draw(WIDTHS))
    return chain(f, kernel(draw, 0, f.out_channels)), image(draw, f.in_channels, 0)


@kind(FuseChain(Calls()))
def padding_that_reads_values(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, size=(1, 1), stride=(1, 1))
    mode = draw(st.sampled_from(("reflect", "replicate", "circular")))
    g = kernel(draw, rank, f.out_channels, size=(2, 3), padding=(1, 2), padding_mode=mode)
    return chain(f, g), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def zero_padding_then_convolution(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    around = [end for side in draw(sides(rank)) for end in side]
    pad = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)[rank - 1](tuple(around))
    g = kernel(draw, rank, channels, padding=(0, 1))
    return nn.Sequential(pad, module(g)).eval(), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def convolution_then_mean_pooling(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, stride=(1, 1), padding=(0, 1))
    pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    window = pool(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return nn.Sequential(module(f), window).eval(), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def mean_pooling_then_convolution(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    size = draw(st.integers(1, 3))
    window = pool(size, draw(st.integers(1, 2)), draw(st.integers(0, size // 2)))
    g = kernel(draw, rank, channels, size=(1, 2))
    return nn.Sequential(window, module(g)).eval(), image(draw, channels, rank)


@kind(FuseChain(Calls()))
def transposed_then_convolution(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, stride=(1, 3), bias=False, transposed=True)
    g = kernel(draw, rank, f.out_channels, size=(2, 3), stride=(1, 1), padding=(0, 1))
    return chain(f, g), image(draw, channels, rank, 3, 5)


@kind(FuseChain(Calls()))
def pointwise_then_transposed(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, size=(1, 1), stride=(1, 1), bias=False)
    options = {"padding": (0, 1), "dilation": (1, 2), "transposed": True}
    g = kernel(draw, rank, f.out_channels, size=(2, 3), stride=(1, 3), **options)
    return chain(f, g), image(draw, channels, rank, 3, 5)


@kind(FuseChain(Calls()))
def product_with_a_constant_matrix(draw: DrawFn) -> Case:
    f = kernel(draw, 0, draw(WIDTHS))
    matrix = nn.Parameter(draw(tensors(f.out_channels, draw(WIDTHS))))
    model = Wiring(lambda m, x: m.f(x) @ m.kept[0], f=module(f), kept=nn.ParameterList([matrix]))
    return model.eval(), image(draw, f.in_channels, 0)


@kind(FusePadded(Calls(-1.0)))
def padded_convolution_then_padded_one(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, size=(2, 3), padding=(0, 1))
    g = kernel(draw, rank, f.out_channels, size=(2, 3), stride=(1, 1), padding=(1, 1))
    return chain(f, g), image(draw, channels, rank, 10, 12)


# Sums


def added(f: nn.Module, g: nn.Module) -> nn.Module:
    return Wiring(lambda m, x: m.f(x) + m.g(x), f=f, g=g).eval()


def alike(draw: DrawFn, rank: int, channels: int, out: int, stride: tuple[int, ...]) -> Conv:
    """A convolution of an odd kernel that keeps an image's size but for the stride."""
    size = draw(st.sampled_from((1, 3)))
    dilation = draw(st.integers(1, 2))
    drawn = kernel(draw, rank, channels, out, size=(size, size), dilation=(dilation, dilation))
    padding = (dilation * (size - 1) // 2,) * rank
    return Conv(drawn.weight, drawn.bias, stride, padding, drawn.dilation, drawn.groups)


@kind(FuseParallel(Calls()))
def sum_of_two_convolutions(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    out, stride = draw(WIDTHS), draw(per_axis(rank, 1, 2))
    f, g = (alike(draw, rank, channels, out, stride) for _ in "fg")
    return added(module(f), module(g)), image(draw, channels, rank)


@kind(FuseParallel(Calls()))
def convolution_and_its_skip(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = alike(draw, rank, channels, channels, (1,) * rank)
    model = Wiring(lambda m, x: x + m.f(x), f=module(f))
    return model.eval(), image(draw, channels, rank)


@kind(FuseParallel(Calls()))
def sum_of_two_transposed_convolutions(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    out, stride = draw(WIDTHS), draw(per_axis(rank, 1, 3))

    def drawn() -> nn.Module:
        size = draw(st.sampled_from((1, 3)))
        f = kernel(draw, rank, channels, out, size=(size, size), transposed=True)
        cut = (size // 2,) * rank
        return module(Conv(f.weight, f.bias, stride, cut, f.dilation, f.groups, transposed=True))

    return added(drawn(), drawn()), image(draw, channels, rank, 3, 5)


@kind(FuseShared(Calls()))
def value_that_several_operators_read(draw: DrawFn) -> Case:
    rank, channels = ends(draw, 0)
    first = draw(
        st.sampled_from(
            (
                draw(scale_shifts(rank, channels)),
                kernel(draw, rank, channels, size=(1, 1), stride=(1, 1)),
            )
        )
    )
    readers = [kernel(draw, rank, first.out_channels, padding=(0, 1)) for _ in "gh"]
    names = {"f": module(first), "g": module(readers[0]), "h": module(readers[1])}

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.f(x)
        return m.g(y), m.h(y)

    return Wiring(forward, **names).eval(), image(draw, channels, rank)


# Concatenations


def branches(draw: DrawFn, channels: int) -> tuple[Conv, Conv]:
    return tuple(alike(draw, 2, channels, draw(WIDTHS), (1, 1)) for _ in "fg")  # type: ignore[return-value]


def laid(f: nn.Module, g: nn.Module, tail: nn.Module, *, two_inputs: bool) -> nn.Module:
    """Two branches, on one value or on two, one behind the other, then a tail."""

    def forward(m: Any, x: Tensor) -> Tensor:
        z = torch.tanh(x) if two_inputs else x
        result: Tensor = m.tail(torch.cat([m.f(x), m.g(z)], 1))
        return result

    return Wiring(forward, f=f, g=g, tail=tail).eval()


@kind(ScaleCat(Calls()))
def batch_norm_behind_a_concatenation(draw: DrawFn) -> Case:
    channels = draw(WIDTHS)
    f, g = branches(draw, channels)
    tail = module(draw(scale_shifts(2, f.out_channels + g.out_channels)))
    return laid(module(f), module(g), tail, two_inputs=True), image(draw, channels, 2)


@kind(StackSiblings(Calls()))
def siblings_that_are_concatenated(draw: DrawFn) -> Case:
    channels = draw(WIDTHS)
    f, g = branches(draw, channels)
    return laid(module(f), module(g), nn.Tanh(), two_inputs=False), image(draw, channels, 2)


@kind(SplitCat(Calls()))
def pointwise_over_a_concatenation(draw: DrawFn) -> Case:
    channels = draw(WIDTHS)
    f, g = branches(draw, channels)
    into = f.out_channels + g.out_channels
    tail = kernel(draw, 2, into, size=(1, 1), grouped=False)
    return laid(module(f), module(g), module(tail), two_inputs=True), image(draw, channels, 2)


# Structure


@kind(CommutePooling(FlopsCost()))
def pointwise_then_windows_averaged(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, 6, size=(1, 1), stride=(1, 1))
    pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    window = pool(draw(st.integers(2, 3)), 3, ceil_mode=draw(st.booleans()))
    return nn.Sequential(module(f), window).eval(), image(draw, channels, rank)


@kind(CommutePooling(FlopsCost()))
def pointwise_then_global_average(draw: DrawFn) -> Case:
    rank, channels = ends(draw)
    f = kernel(draw, rank, channels, 6, size=(1, 1), stride=(1, 1))
    axes = tuple(range(-rank, 0))
    keep = draw(st.booleans())
    return Wiring(lambda m, x: m.f(x).mean(axes, keep), f=module(f)).eval(), image(
        draw, channels, rank
    )


@kind(FuseFlatten(Calls()))
def pointwise_on_one_position_then_linear(draw: DrawFn) -> Case:
    channels = draw(WIDTHS)
    f = kernel(draw, 2, channels, size=(1, 1), stride=(1, 1))
    g = kernel(draw, 0, f.out_channels)
    layers = (nn.AdaptiveAvgPool2d(1), module(f), nn.Flatten(), module(g))
    return nn.Sequential(*layers).eval(), image(draw, channels, 2)


_MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda v: v.permute(0, 2, 3, 1),
    "tokens": lambda v: v.flatten(2).transpose(1, 2),
    "mean": lambda v: v.mean((2, 3)),
    "global pooling": lambda v: F.adaptive_avg_pool2d(v, 1).flatten(1),
}


@kind(FoldScale(Calls()))
def scale_behind_structure(draw: DrawFn) -> Case:
    channels, move = draw(WIDTHS), draw(st.sampled_from(sorted(_MOVES)))
    # Of one channel alone, a flattening does not tell whether it has brought positions or channels.
    f = kernel(draw, 2, channels, draw(st.sampled_from((2, 3, 4, 6))), padding=(0, 1))
    gain = nn.Parameter(draw(tensors(f.out_channels)))
    kept = nn.ParameterList([gain])
    model = Wiring(lambda m, x: _MOVES[move](m.f(x)) * m.kept[0], f=module(f), kept=kept)
    return model.eval(), image(draw, channels, 2)


@kind(FoldScale(Calls()))
def batch_norm_before_structure(draw: DrawFn) -> Case:
    channels, move = draw(st.sampled_from((2, 3, 4, 6))), draw(st.sampled_from(sorted(_MOVES)))
    s, g = module(draw(scale_shifts(2, channels))), module(kernel(draw, 0, channels))
    model = Wiring(lambda m, x: m.g(_MOVES[move](m.s(x))), s=s, g=g)
    return model.eval(), image(draw, channels, 2)


@kind(FoldNorm())
def affine_part_of_a_norm(draw: DrawFn) -> Case:
    width = draw(st.sampled_from((2, 3, 5)))
    norm = draw(norms(width)).double()
    readers = [module(kernel(draw, 0, width)) for _ in "qk"]

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.norm(x)
        return m.q(y), m.k(y)

    model = Wiring(forward, norm=norm, q=readers[0], k=readers[1]).eval()
    return model, draw(tensors(2, 3, width))


@kind(FoldWeights())
def weight_that_is_computed(draw: DrawFn) -> Case:
    into, out = draw(WIDTHS), draw(WIDTHS)
    kept = nn.ParameterList([draw(tensors(out, into, 3, 3)), draw(tensors(out, 1, 1, 1))])
    padding = draw(st.integers(0, 1))
    model = Wiring(lambda m, x: F.conv2d(x, m.kept[0] * m.kept[1], None, 1, padding), kept=kept)
    return model.eval(), image(draw, into, 2)


@kind(DropReshapes())
def rows_of_tokens_that_are_made_again(draw: DrawFn) -> Case:
    f = kernel(draw, 0, draw(WIDTHS))
    g = kernel(draw, 0, f.out_channels)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.f(x).reshape(2, 3, f.out_channels)
        result: Tensor = m.g(y.reshape(-1, f.out_channels))
        return result

    return Wiring(forward, f=module(f), g=module(g)).eval(), draw(tensors(6, f.in_channels))


@kind(DropIdentities())
def what_does_nothing_in_eval_mode(draw: DrawFn) -> Case:
    channels = draw(WIDTHS)
    nothing = draw(st.sampled_from((nn.Dropout(0.5), nn.Identity(), nn.Dropout2d(0.3))))
    layers = (module(kernel(draw, 2, channels)), nothing, nn.Tanh())
    return nn.Sequential(*layers).eval(), image(draw, channels, 2)


@kind(SingleAssignment())
def rectifier_in_place(draw: DrawFn) -> Case:
    channels = draw(WIDTHS)
    f = alike(draw, 2, channels, channels, (1, 1))
    act = draw(st.sampled_from((nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)))

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.f(x)
        result: Tensor = m.act(y) + y
        return result

    return Wiring(forward, f=module(f), act=act(inplace=True)).eval(), image(draw, channels, 2)
