"""Merging transposed convolutions.

A transposed convolution of stride s, dilation d and padding p writes tap a of its input at x to
s x + d a - p, and is given as many positions as it says: (n - 1) s - 2 p + d (k - 1) + o + 1 for n
inputs and output padding o. It is the adjoint of the convolution that has the same weight, so two
of them merge as those do, the other way round:

    stride s1 s2,   padding s2 p1 + p2,   output padding s2 o1 + o2,
    W[i, o, s2 d1 a + d2 b] += sum_m W1[i, m, a] W2[m, o, b]      (weights [Cin, Cout, *k])

A convolution of stride 1 is a transposed one whose taps are reversed, of padding d (k - 1) - p; so
merging with it is the same rule. Exact where all that the first one's padding crops would have
fallen outside of the second one's output too.
Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, chapter 4.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from torch.nn.functional import pad

from fxreduce.operators.affine import Conv, Refusal, nonzero
from fxreduce.operators.kernels import contract, merge_kernels, regroup, reverse

UNEVEN = (
    "a bias or shift before a transposed convolution reaches each position by another number of "
    "taps"
)


def as_ordinary(operator: Conv) -> Conv:
    """The operator itself, or the ordinary convolution that a transposed one of stride 1 is."""
    cropped = _mirrored_padding(operator)
    if not operator.transposed or max(operator.stride) > 1 or any(operator.output_padding):
        return operator
    if min(cropped) < 0:
        return operator
    weight = reverse(operator.weight, operator.groups)
    return replace(operator, weight=weight, padding=cropped, transposed=False)


def as_transposed(operator: Conv) -> Conv | Refusal:
    """The operator itself, or the transposed convolution that an ordinary one of stride 1 is."""
    if operator.transposed:
        return operator
    padding = _mirrored_padding(operator)
    if max(operator.stride) > 1:
        return Refusal(
            f"a convolution of stride {operator.stride} beside a transposed one leaves positions "
            "out: they merge to no single operator"
        )
    if operator.is_padded and operator.padding_mode != "zeros":
        return Refusal(f"{operator.padding_mode} padding beside a transposed convolution")
    if operator.border is not None:
        return Refusal("a bias that ends at a padded border beside a transposed convolution")
    if min(padding) < 0:
        return Refusal(
            f"a padding of {operator.padding} is wider than the kernel beside a transposed "
            f"convolution reaches: {reach_of(operator)}"
        )
    weight = reverse(operator.weight, operator.groups)
    return replace(operator, weight=weight, padding=padding, padding_mode="zeros", transposed=True)


def compose_transposed(f: Conv, g: Conv) -> Conv | Refusal:
    """The operator equal to g(f(x)), where one of the two is transposed; see the module.

    f's bias passes only through a g that is ordinary and pads nothing.
    """
    first, second = as_transposed(f), as_transposed(g)
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        return first if isinstance(first, Refusal) else second
    if f.bias is not None and (g.transposed or g.is_padded):
        return Refusal(UNEVEN)
    if _crop_is_seen(first, second):
        return Refusal(
            f"the first operator is cut to its output by {first.padding}, and the second, of "
            f"kernel {g.kernel} and stride {g.stride}, would spread the part that is cut off"
        )
    groups = gcd(f.groups, g.groups)
    weight, dilation = merge_kernels(
        regroup(second.weight, g.groups, groups),
        regroup(first.weight, f.groups, groups),
        groups,
        stride=second.stride,
        dilations=(second.dilation, first.dilation),
    )
    bias = g.bias
    if f.bias is not None:
        passed = contract(g.weight, f.bias, g.groups).reshape(g.out_channels, -1).sum(1)
        bias = nonzero(passed if bias is None else bias + passed)
    steps = second.stride
    return fitted(
        Conv(
            weight,
            bias,
            stride=_scaled(first.stride, steps),
            padding=_sum(_scaled(first.padding, steps), second.padding),
            dilation=dilation,
            groups=groups,
            transposed=True,
            output_padding=_sum(_scaled(first.output_padding, steps), second.output_padding),
        )
    )


def fitted(operator: Conv) -> Conv:
    """The transposed convolution with zero taps for an output padding too large for torch.

    Torch's output padding is smaller than the stride or the dilation; a tap at the end of the
    kernel writes as many positions more as the dilation says.
    """
    taps, left = [], []
    for size, s, d in zip(operator.output_padding, operator.stride, operator.dilation, strict=True):
        taps.append(0 if size < max(s, d) else size // d)
        left.append(size - taps[-1] * d)
    ends = [end for more in reversed(taps) for end in (0, more)]
    return replace(operator, weight=pad(operator.weight, ends), output_padding=tuple(left))


def reach_of(operator: Conv) -> tuple[int, ...]:
    """From the first tap to the last: d (k - 1)."""
    return tuple(d * (k - 1) for d, k in zip(operator.dilation, operator.kernel, strict=True))


def _crop_is_seen(first: Conv, second: Conv) -> bool:
    """Whether values that the first one's padding cuts off would reach the second one's output.

    The last value that is cut off on the left, at -1, is written to -s + d (k - 1) - p at most; the
    first on the right, at n, to s n - p at least, where the output ends at
    s (n - 1) - 2 p + d (k - 1) + o. Whether the first one writes there is not looked at: where its
    stride and dilation leave gaps it may not.
    """
    for axis, reach in enumerate(reach_of(second)):
        spill = reach - second.padding[axis] - second.stride[axis]
        cut, kept = first.padding[axis], first.output_padding[axis]
        if (cut > 0 and spill >= 0) or (cut > kept and spill + second.output_padding[axis] >= 0):
            return True
    return False


def _mirrored_padding(operator: Conv) -> tuple[int, ...]:
    return tuple(r - p for r, p in zip(reach_of(operator), operator.padding, strict=True))


def _scaled(values: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value * step for value, step in zip(values, steps, strict=True))


def _sum(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
