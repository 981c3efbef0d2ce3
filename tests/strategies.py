"""Every hypothesis strategy of the tests: operators, their inputs, and random models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from checks import randomised
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from networks import Network, Step, call
from torch import Tensor, nn

from fxreduce.operators.affine import Conv, Operator, ScaleShift, apply

CHANNELS = (1, 2, 3, 4, 6)
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def tensors(draw: DrawFn, *shape: int) -> Tensor:
    """Standard normal numbers in float64; hypothesis shrinks their seed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def per_axis(rank: int, low: int, high: int) -> SearchStrategy[tuple[int, ...]]:
    """One integer for each spatial axis."""
    return st.tuples(*(st.integers(low, high) for _ in range(rank)))


def ranks() -> SearchStrategy[int]:
    return st.integers(0, 3)


@st.composite
def scale_shifts(draw: DrawFn, rank: int, channels: int) -> ScaleShift:
    """A batch-norm in eval; a third of them without a shift."""
    shift = draw(tensors(channels)) * draw(st.sampled_from((1.0, 1.0, 0.0)))
    return ScaleShift(draw(tensors(channels)), shift, rank)


@st.composite
def groups_and_width(draw: DrawFn, channels: int) -> tuple[int, int]:
    """A number of groups that divides `channels`, and output channels that it divides too."""
    groups = draw(st.sampled_from([n for n in CHANNELS if channels % n == 0]))
    return groups, draw(st.sampled_from([n for n in CHANNELS if n % groups == 0]))


@st.composite
def convs(draw: DrawFn, rank: int, channels: int, *, transposed: bool | None = None) -> Conv:
    """Any convolution, Linear or transposed convolution of a rank on so many input channels."""
    groups, width = (
        draw(groups_and_width(channels)) if rank else (1, draw(st.sampled_from(CHANNELS)))
    )
    if transposed is None:
        transposed = rank > 0 and draw(st.integers(0, 5)) == 0
    kernel = draw(st.one_of(st.just((1,) * rank), per_axis(rank, 1, 4 if rank < 3 else 2)))
    stride = draw(per_axis(rank, 1, 3))
    dilation = draw(per_axis(rank, 1, 3))
    padding = draw(st.one_of(st.just((0,) * rank), per_axis(rank, 0, 3)))
    options: dict[str, Any] = {}
    if transposed:
        padding = tuple(
            min(p, d * (k - 1)) for p, d, k in zip(padding, dilation, kernel, strict=True)
        )
        options["output_padding"] = tuple(
            min(max(s, d) - 1, 1) for s, d in zip(stride, dilation, strict=True)
        )
        shape = (channels, width // groups, *kernel)
    else:
        options["padding_mode"] = draw(st.sampled_from(("zeros", *MODES))) if rank else "zeros"
        shape = (width, channels // groups, *kernel)
    return Conv(
        draw(tensors(*shape)),
        draw(st.none() | tensors(width)),
        stride,
        padding,
        dilation,
        groups,
        transposed=transposed,
        **options,
    )


@st.composite
def windows(draw: DrawFn, rank: int) -> dict[str, tuple[int, ...]]:
    """Kernel, stride and padding of a pooling, whose padding is at most half of its kernel."""
    kernel = draw(per_axis(rank, 1, 4 if rank < 3 else 2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    return {"kernel": kernel, "stride": draw(per_axis(rank, 1, 4)), "padding": padding}


def sides(rank: int) -> SearchStrategy[tuple[tuple[int, int], ...]]:
    """How far each axis is padded from the left and from the right."""
    return st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3)) for _ in range(rank)))


@st.composite
def operators(draw: DrawFn, rank: int, channels: int) -> Operator:
    if draw(st.integers(0, 3)) == 0:
        return draw(scale_shifts(rank, channels))
    return draw(convs(rank, channels))


@st.composite
def chains(draw: DrawFn, length: int) -> list[Operator]:
    """Operators of one rank, each reading as many channels as the one before writes."""
    rank, channels = draw(ranks()), draw(st.sampled_from(CHANNELS))
    chain: list[Operator] = []
    for _ in range(length):
        chain.append(draw(operators(rank, channels)))
        channels = chain[-1].out_channels
    return chain


@st.composite
def bordered_chains(draw: DrawFn) -> list[Operator]:
    """A pointwise operator with a shift, then a convolution that pads with zeros."""
    rank, channels = draw(st.integers(1, 3)), draw(st.sampled_from(CHANNELS))
    groups, width = draw(groups_and_width(channels))
    kernel = draw(per_axis(rank, 2, 3))
    pointwise = Conv(
        draw(tensors(channels, draw(st.sampled_from(CHANNELS)), *(1,) * rank)),
        draw(tensors(channels)),
        draw(per_axis(rank, 1, 2)),
    )
    shift = ScaleShift(draw(tensors(channels)), draw(tensors(channels)), rank)
    padded = Conv(
        draw(tensors(width, channels // groups, *kernel)),
        draw(st.none() | tensors(width)),
        draw(per_axis(rank, 1, 2)),
        draw(per_axis(rank, 1, 2)),
        draw(per_axis(rank, 1, 2)),
        groups,
    )
    return [draw(st.sampled_from([pointwise, shift])), padded]


@st.composite
def images(draw: DrawFn, channels: int, rank: int, largest: int = 9) -> Tensor:
    """Inputs of a spatial rank: tiny, smaller than a kernel, and not square ones among them.

    Of rank 0: tokens with a few leading axes.
    """
    if rank == 0:
        leading = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        return draw(tensors(*leading, channels))
    size = draw(per_axis(rank, 1, largest if rank < 3 else 5))
    return draw(tensors(draw(st.integers(1, 2)), channels, *size))


@st.composite
def padded_pairs(draw: DrawFn) -> tuple[Conv, Conv, Tensor]:
    """Two convolutions that pad with zeros if at all, and an input that both run on."""
    rank, channels = draw(st.integers(1, 3)), draw(st.sampled_from(CHANNELS))
    f = replace(draw(convs(rank, channels, transposed=False)), padding_mode="zeros")
    g = replace(draw(convs(rank, f.out_channels, transposed=False)), padding_mode="zeros")
    x = draw(images(channels, rank, largest=16))
    try:
        apply(g, apply(f, x))
    except RuntimeError:
        assume(False)
    return f, g, x


def parallel_convs(modes: Sequence[str] = MODES) -> SearchStrategy[tuple[Conv, Conv]]:
    """Two convolutions that read and write the same shapes: same stride, same growth."""
    return _convs_alike(modes, same_width=True)


def siblings() -> SearchStrategy[tuple[Conv, Conv]]:
    """Two convolutions on one input whose outputs differ in their channels alone."""
    return _convs_alike(MODES, same_width=False)


@st.composite
def _convs_alike(draw: DrawFn, modes: Sequence[str], *, same_width: bool) -> tuple[Conv, Conv]:
    rank, channels = draw(ranks()), draw(st.sampled_from(CHANNELS))
    groups, width = (
        draw(groups_and_width(channels)) if rank else (1, draw(st.sampled_from(CHANNELS)))
    )
    widths = [n for n in CHANNELS if n == width or not same_width]
    pairs = [(n, w) for n in CHANNELS for w in widths if channels % n == 0 == w % n]
    other, other_width = draw(st.sampled_from(pairs))
    stride = draw(per_axis(rank, 1, 2))
    mode = draw(st.sampled_from(modes)) if rank else "zeros"
    growths = draw(st.tuples(*(st.integers(-3, 2) for _ in range(rank))))

    def conv(groups: int, width: int) -> Conv:
        axes = [draw(st.sampled_from(_windows(growth))) for growth in growths]
        kernel, dilation, padding = zip(*axes, strict=True) if axes else ((), (), ())
        return Conv(
            draw(tensors(width, channels // groups, *kernel)),
            draw(st.none() | tensors(width)),
            stride,
            padding,
            dilation,
            groups,
            mode,
        )

    return conv(groups, width), conv(other if rank else 1, other_width)


@st.composite
def transposed_pairs(draw: DrawFn) -> tuple[Operator, Conv]:
    """Two operators that follow one another, one of them transposed and the other mostly fit.

    An ordinary convolution has stride 1, the first operator mostly no bias, and the first
    transposed one often nothing that its padding cuts off.
    """
    rank, channels = draw(st.integers(1, 3)), draw(st.sampled_from(CHANNELS))
    kinds = draw(st.sampled_from(((True, False), (False, True), (True, True), (None, True))))
    pair: list[Operator] = []
    for transposed in kinds:
        if transposed is None:
            pair.append(draw(scale_shifts(rank, channels)))
            continue
        conv = draw(convs(rank, channels, transposed=transposed))
        if draw(st.integers(0, 5)):
            conv = replace(conv, padding_mode="zeros")
            conv = conv if transposed else replace(conv, stride=(1,) * rank)
        if not pair and draw(st.integers(0, 5)):
            whole = tuple(d * (k - 1) for d, k in zip(conv.dilation, conv.kernel, strict=True))
            padding = draw(st.sampled_from((conv.padding, (0,) * rank if transposed else whole)))
            bias = draw(st.sampled_from((None, None, conv.bias)))
            conv = replace(conv, padding=padding, bias=bias)
        pair.append(conv)
        channels = conv.out_channels
    return pair[0], pair[1]  # type: ignore[return-value]


@st.composite
def parallel_transposed(draw: DrawFn) -> tuple[Conv, Conv]:
    """Two transposed convolutions that read and write the same shapes, or nearly so."""
    rank, channels = draw(st.integers(1, 3)), draw(st.sampled_from(CHANNELS))
    f = draw(convs(rank, channels, transposed=True))
    width = f.out_channels
    groups = draw(st.sampled_from([n for n in CHANNELS if channels % n == 0 == width % n]))
    axes = []
    for axis, stride in enumerate(f.stride):
        size = f.dilation[axis] * (f.kernel[axis] - 1) + f.output_padding[axis]
        axes.append(draw(st.sampled_from(_spreads(size - 2 * f.padding[axis], stride))))
    kernel, dilation, padding, output_padding = zip(*axes, strict=True)
    weight = draw(tensors(channels, width // groups, *kernel))
    bias = draw(st.none() | tensors(width))
    options = {"transposed": True, "output_padding": output_padding}
    return f, Conv(weight, bias, f.stride, padding, dilation, groups, **options)


def _spreads(growth: int, stride: int) -> Sequence[tuple[int, int, int, int]]:
    """(kernel, dilation, padding, output padding) with d (k - 1) - 2 p + o = growth."""
    found = []
    for kernel, dilation, more in product(range(1, 5), range(1, 4), range(3)):
        twice = dilation * (kernel - 1) + more - growth
        fits = twice % 2 == 0 and 0 <= twice // 2 <= dilation * (kernel - 1)
        if fits and more < max(stride, dilation):
            found.append((kernel, dilation, twice // 2, more))
    return found


def _windows(growth: int) -> Sequence[tuple[int, int, int]]:
    """(kernel, dilation, padding) of one axis with 2 p - d (k - 1) = growth."""
    found = []
    for kernel, dilation in product(range(1, 5), range(1, 4)):
        twice = growth + dilation * (kernel - 1)
        if twice >= 0 and twice % 2 == 0:
            found.append((kernel, dilation, twice // 2))
    return found


@st.composite
def layers(draw: DrawFn, shape: Sequence[int], *, same: bool = False) -> nn.Module:
    """A layer for values of a shape (N, C, ...); an affine one that keeps the shape if so asked."""
    channels, rank = shape[1], len(shape) - 2
    kinds = ["dense"] * 5 + ["norm"] * 4 + ["linear"]
    kind = draw(st.sampled_from(kinds if same else [*kinds, "act", "act", "other", "token norm"]))

    more = ["act", "act", "other", *["window"] * 3 * (rank > 0)]
    kind = draw(st.sampled_from(kinds if same else [*kinds, *more]))
    if kind == "act":
        act = draw(st.sampled_from((nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)))
        return act(inplace=draw(st.booleans()))
    if kind == "other":
        return draw(st.sampled_from((nn.Identity(), nn.Dropout(), nn.GELU(), nn.PReLU(channels))))
    if kind == "token norm":
        return draw(norms(shape[-1]))
    if kind == "linear" or (rank == 0 and kind == "dense"):
        width = shape[-1] if same else draw(st.sampled_from((shape[-1], channels, 3)))
        return nn.Linear(shape[-1], width, bias=draw(st.booleans()))
    if kind == "norm":
        norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[rank]
        return randomised(norm(channels, affine=draw(st.booleans())))
    groups, width = draw(groups_and_width(channels))
    if kind == "window":
        return draw(_windowed(rank, channels, width, groups))
    kernel = draw(st.sampled_from((1, 1, 3) if same else (1, 1, 3, 2)))
    return (nn.Conv1d, nn.Conv2d)[rank - 1](
        channels,
        channels if same else width,
        kernel,
        1 if same else draw(st.sampled_from((1, 1, 1, 2))),
        kernel // 2 if same else draw(st.sampled_from((0, kernel // 2))),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(("zeros", "zeros", "zeros", "reflect", "circular"))),
    )


@st.composite
def _windowed(draw: DrawFn, rank: int, channels: int, width: int, groups: int) -> nn.Module:
    """A mean pooling, a pad of zeros or a transposed convolution."""
    kind = draw(st.sampled_from(("pool", "pool", "pad", "up")))
    if kind == "pad":
        ends = [end for side in draw(sides(rank)) for end in side]
        return (nn.ZeroPad1d, nn.ZeroPad2d)[rank - 1](tuple(ends))
    if kind == "pool":
        counted = draw(st.booleans())
        options = {"ceil_mode": draw(st.sampled_from((False, False, True)))}
        pool = (nn.AvgPool1d, nn.AvgPool2d)[rank - 1]
        return pool(*draw(windows(rank)).values(), count_include_pad=counted, **options)
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d)[rank - 1]
    kernel, stride = draw(st.sampled_from(((2, 2), (1, 1), (3, 2), (3, 1))))
    padding = draw(st.sampled_from((0, kernel // 2)))
    return up(channels, width, kernel, stride, padding, stride - 1, groups, draw(st.booleans()))


@st.composite
def networks(draw: DrawFn, length: int = 10) -> tuple[Network, Tensor]:
    """A random network and an input: chains, branches, skips, shared modules, in-place calls."""
    rank = draw(st.sampled_from((2, 2, 2, 1, 0)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(2, draw(st.sampled_from((2, 3, 4))), *(6, 5)[:rank], dtype=torch.float64)
    net, values = Network(), [x.clone()]
    for _ in range(draw(st.integers(1, length))):
        kinds = (_layer, _layer, _layer, _residual, _residual, _reuse, _arithmetic, _join)
        draw(st.sampled_from(kinds))(draw, net, values)
    extra = draw(st.lists(st.integers(0, len(values) - 1), max_size=1))
    net.returned = (-1, *extra)
    return net.double().eval(), x


@st.composite
def norms(draw: DrawFn, width: int) -> nn.Module:
    """A LayerNorm or RMSNorm of the last axis, with an affine part that changes something."""
    kind = draw(st.sampled_from(("layer", "layer without bias", "rms")))
    if kind == "rms":
        norm: nn.Module = nn.RMSNorm(width, draw(st.sampled_from((None, 1e-3))))
    else:
        norm = nn.LayerNorm(width, draw(st.sampled_from((1e-5, 1e-2))), bias=kind == "layer")
    for parameter in norm.parameters():
        parameter.detach().copy_(draw(tensors(width)))
    return norm


# What stands between a norm of (N, T, C) and a Linear, and keeps the channels apart.
_TOKEN_STRUCTURE: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda v: v,
    "first token": lambda v: v[:, 0],
    "mean of tokens": lambda v: v.mean(1),
    "pooling": lambda v: F.adaptive_avg_pool1d(v.transpose(1, 2), 1).flatten(1),
    "flatten": lambda v: v.flatten(1),
    "unsqueeze": lambda v: v.unsqueeze(1),
    "movedim": lambda v: v.roll(1, 1).movedim(0, 1),
}


@st.composite
def normed_tokens(draw: DrawFn) -> tuple[Network, Tensor, int]:
    """A norm that Linears read, some behind structure, an input, and how many Linears there are."""
    width = draw(st.sampled_from((2, 3, 5)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    x = draw(tensors(2, 3, width))
    net, values = Network(), [x]
    net.extend(call(net.keep(draw(norms(width))), 0), values, "norm")
    readers = draw(st.integers(1, 3))
    for _ in range(readers):
        kind = draw(st.sampled_from(sorted(_TOKEN_STRUCTURE)))
        move = _TOKEN_STRUCTURE[kind]
        net.extend(lambda net, v, move=move: move(v[1]), values, kind)
        linear = nn.Linear(values[-1].shape[-1], 3, bias=draw(st.booleans()))
        net.extend(call(net.keep(linear), len(values) - 1), values, "linear")
    net.returned = range(3, len(values), 2)
    return net.eval(), x, readers


# What keeps the channels of images (N, C, 4, 3) apart, by whether they stay on axis 1 of four.
_IMAGE_STRUCTURE: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "permute": (False, lambda v: v.permute(0, 2, 3, 1)),
    "tokens": (False, lambda v: v.flatten(2).transpose(1, 2)),
    "mean": (False, lambda v: v.mean((2, 3))),
    "global pooling": (False, lambda v: F.adaptive_avg_pool2d(v, 1).flatten(1)),
    "flatten": (False, lambda v: v.flatten(1)),
    "pooling": (True, lambda v: F.avg_pool2d(v, 2, 1)),
    "padding": (True, lambda v: F.avg_pool2d(v, 3, 1, 1, count_include_pad=False)),
    "crop": (True, lambda v: v[:, :, 1:, :2]),
    "there and back": (True, lambda v: v.transpose(1, 3).movedim(-1, 1)),
}


@st.composite
def scaled_images(draw: DrawFn) -> tuple[Network, Tensor]:
    """A scale-shift that structure separates from the only other affine operator; an input."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels = draw(st.sampled_from((2, 3)))
    x = draw(tensors(draw(st.integers(1, 2)), channels, 4, 3))
    net, values = Network(), [x]
    above = draw(st.booleans())
    # Upwards, positions of one channel that have scales of their own are refused.
    kinds = sorted(_IMAGE_STRUCTURE.keys() - ({"flatten"} if above else set()))
    kind = draw(st.sampled_from(kinds))
    is_image, move = _IMAGE_STRUCTURE[kind]
    conv: nn.Module = nn.Conv2d(channels, 5, draw(st.sampled_from((1, 2))), padding=int(above))
    first = conv if above else randomised(nn.BatchNorm2d(channels))
    net.extend(call(net.keep(first), 0), values, "first")
    net.extend(lambda net, v: move(v[1]), values, kind)
    width = values[-1].shape[1 if is_image else -1]
    if above:
        gain = nn.Parameter(draw(tensors(width, *(1, 1) * is_image)), requires_grad=False)
        name = net.keep(nn.ParameterList([gain]))
        net.extend(lambda net, v: v[2] * getattr(net, name)[0], values, "gain")
    else:
        reader = nn.Conv2d(width, 4, 2) if is_image else nn.Linear(width, 4)
        net.extend(call(net.keep(reader), 2), values, "reader")
    return net.double().eval(), x


def _place(draw: DrawFn, values: list[Tensor]) -> int:
    """Mostly the latest value, so that chains grow; sometimes an earlier one."""
    latest = len(values) - 1
    return draw(st.sampled_from((*[latest] * 6, draw(st.integers(0, latest)))))


def _layer(draw: DrawFn, net: Network, values: list[Tensor]) -> None:
    place = _place(draw, values)
    name = net.keep(draw(layers(values[place].shape)))
    net.extend(call(name, place), values, f"{len(values)}: {getattr(net, name)} on {place}")


def _reuse(draw: DrawFn, net: Network, values: list[Tensor]) -> None:
    """Call a module once more, or one that shares its weight, where it fits."""
    if not net._modules:
        return
    name, place = draw(st.sampled_from(sorted(net._modules))), _place(draw, values)
    module = getattr(net, name)
    if isinstance(module, nn.Conv2d) and draw(st.booleans()):
        tied = deepcopy(module)
        tied.weight, tied.bias = module.weight, None
        name = net.keep(tied)
    net.extend(call(name, place), values, f"{len(values)}: {name} again on {place}")


def _arithmetic(draw: DrawFn, net: Network, values: list[Tensor]) -> None:
    """A functional rectifier or batch-norm, a constant per channel, a number, a view."""
    place = _place(draw, values)
    channels, rank = values[place].shape[1], values[place].dim() - 2
    gain = nn.Parameter(torch.rand(channels, *(1,) * rank) + 0.5, requires_grad=False)
    name = net.keep(nn.ParameterList([gain]))
    steps: dict[str, Step] = {
        "relu": lambda net, v: F.relu(v[place]),
        "relu_": lambda net, v: F.relu(v[place], inplace=True),
        "leaky_relu_": lambda net, v: F.leaky_relu_(v[place]),
        "gain": lambda net, v: v[place] * getattr(net, name)[0],
        "offset": lambda net, v: getattr(net, name)[0] - v[place],
        "gain_": lambda net, v: v[place].mul_(getattr(net, name)[0]),
        "number": lambda net, v: v[place] * 0.5,
        "number_": lambda net, v: v[place].add_(0.25),
        "quotient": lambda net, v: v[place] / 3,
        "norm": lambda net, v: F.batch_norm(
            v[place], getattr(net, name)[0].flatten(), getattr(net, name)[0].flatten()
        ),
        "view": lambda net, v: v[place].transpose(-1, 0).transpose(-1, 0),
        "pool": lambda net, v: F.max_pool2d(v[place], 2, 1),
        "mean": lambda net, v: v[place].mean(-1, keepdim=True),
        "flatten": lambda net, v: v[place].flatten(1),
        "permute": lambda net, v: v[place].permute(0, 2, 3, 1),
        "mean pool": lambda net, v: F.avg_pool2d(v[place], 2, 1),
        "crop": lambda net, v: v[place][:, :, 1:],
    }
    kind = draw(st.sampled_from(sorted(steps)))
    net.extend(steps[kind], values, f"{len(values)}: {kind} of {place}")


def _residual(draw: DrawFn, net: Network, values: list[Tensor]) -> None:
    """Branches of layers that keep the shape, added to each other or to what they started from."""
    start = _place(draw, values)
    ends = [start]
    for _ in range(draw(st.integers(1, 2))):
        place = start
        for _ in range(draw(st.integers(1, 3))):
            name = net.keep(draw(layers(values[place].shape, same=True)))
            told = f"{len(values)}: {getattr(net, name)} on {place}"
            if net.extend(call(name, place), values, told):
                place = len(values) - 1
        ends.append(place)
    _sum(draw, net, values, *ends[-2:])


def _join(draw: DrawFn, net: Network, values: list[Tensor]) -> None:
    """A sum or a cat of any two values."""
    _sum(draw, net, values, _place(draw, values), draw(st.integers(0, len(values) - 1)))


def _sum(draw: DrawFn, net: Network, values: list[Tensor], left: int, right: int) -> None:
    steps: dict[str, Step] = {
        "sum": lambda net, v: v[left] + v[right],
        "torch.add": lambda net, v: torch.add(v[right], v[left]),
        "add_": lambda net, v: v[left].add_(v[right]),
        "cat": lambda net, v: torch.cat((v[left], v[right]), 1),
    }
    kind = draw(st.sampled_from(("sum", "sum", "torch.add", "add_", "cat")))
    net.extend(steps[kind], values, f"{len(values)}: {kind} of {left} and {right}")


Pooled = tuple[nn.Module, Tensor]


@st.composite
def pooled(draw: DrawFn) -> Pooled:
    """A pointwise operator, then an average over images of any size, and an input."""
    rank, channels = draw(st.integers(1, 3)), draw(st.sampled_from(CHANNELS))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    groups, width = draw(groups_and_width(channels))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    pointwise = draw(
        st.sampled_from(
            (
                conv(channels, width, 1, groups=groups, bias=draw(st.booleans())),
                norm(channels, affine=draw(st.booleans())),
            )
        )
    )
    windowed = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    adaptive = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
    size = draw(per_axis(rank, 1, 3))
    windows = windowed(
        size,
        draw(per_axis(rank, 1, 3)),
        draw(st.tuples(*(st.integers(0, each // 2) for each in size))),
        draw(st.booleans()),
        draw(st.booleans()),
    )
    pooling = draw(st.sampled_from((windows, windows, adaptive(size), adaptive(1))))
    x = draw(tensors(2, channels, *draw(per_axis(rank, 3, 7 if rank < 3 else 4))))
    return randomised(nn.Sequential(pointwise, pooling)), x


Concatenated = tuple[nn.Module, Tensor]


class _Concatenation(nn.Module):
    """Branches, each on one of two values, laid behind one another; then a tail."""

    def __init__(
        self, branches: Sequence[tuple[nn.Module, int]], first: nn.Module, tail: nn.Module
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branch for branch, _ in branches)
        self.read = [place for _, place in branches]
        self.first, self.tail = first, tail

    def forward(self, x: Tensor) -> Tensor:
        values = x, self.first(x)
        branches = zip(self.branches, self.read, strict=True)
        result: Tensor = self.tail(torch.cat([b(values[place]) for b, place in branches], 1))
        return result


@st.composite
def concatenated(draw: DrawFn) -> Concatenated:
    """Branches that keep an image's size or halve it, some over one input, then pointwise layers.

    Among the branches are rectifiers, grouped and shared modules and the input itself.
    """
    channels = draw(st.sampled_from((2, 3, 4)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    stride = draw(st.sampled_from((1, 1, 1, 2)))

    def branch() -> nn.Module:
        groups, width = draw(groups_and_width(channels))
        kernel = draw(st.sampled_from((1, 1, 3)))
        options = {"groups": groups, "bias": draw(st.booleans()), "padding": kernel // 2}
        conv = nn.Conv2d(channels, width, kernel, stride, **options)
        kinds: list[nn.Module] = [conv] * 4 + [nn.Sequential(conv, nn.Tanh())]
        kinds += [nn.BatchNorm2d(channels), nn.Identity()] if stride == 1 else []
        return draw(st.sampled_from(kinds))

    branches = [(branch(), draw(st.integers(0, 1))) for _ in range(draw(st.integers(1, 3)))]
    branches += draw(st.sampled_from(([], [], branches[:1])))
    x = draw(tensors(2, channels, 4, 5))
    width = sum(randomised(module)(x).shape[1] for module, _ in branches)
    groups, out = draw(groups_and_width(width)) if width in CHANNELS else (1, 2)
    point = nn.Conv2d(width, out, 1, draw(st.integers(1, 2)), groups=groups)
    tails = (nn.Sequential(nn.BatchNorm2d(width), nn.Tanh()), point, nn.Identity())
    first = draw(st.sampled_from((nn.Tanh(), nn.ReLU())))
    return randomised(_Concatenation(branches, first, draw(st.sampled_from(tails)))), x
