"""Descriptions of affine operators: convolution of any rank, Linear among them, and scale-shift.

An operator of spatial rank r maps channels along axis -(r + 1), counted from the right: rank 0 is
a Linear on the last axis, rank 2 a convolution on (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

import torch
from torch import Tensor

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_FOR_ANY_VALUES = ContextVar("for_any_values", default=False)


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite does not apply: the rule, and the figures behind it."""

    reason: str


@dataclass(frozen=True)
class ScaleShift:
    """y_c = scale_c * x_c + shift_c on channel axis -(rank + 1): batch-norm in eval, LayerScale.

    `scale` and `shift` are [C]. `rank` is the number of axes right of the channel axis.
    """

    scale: Tensor
    shift: Tensor
    rank: int

    @property
    def in_channels(self) -> int:
        return self.scale.numel()

    @property
    def out_channels(self) -> int:
        return self.scale.numel()

    @property
    def has_shift(self) -> bool:
        """Whether the shift can be non-zero; on the meta device it is assumed to be."""
        return may_be_nonzero(self.shift)


@dataclass(frozen=True)
class Conv:
    """A convolution of spatial rank 0 (Linear) to 3, as torch defines it.

    Attributes:
        weight: `[Cout, Cin / groups, *k]`; transposed: `[Cin, Cout / groups, *k]`.
        bias: [Cout] or None where it is zero.
        border: `[Cout, *k]` or None. The kernel of one more input channel that holds the constant 1
            and is padded with zeros like the input. It carries the bias of an operator that stood
            before the padding, exactly and for every input size.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    border: Tensor | None = None

    def __post_init__(self) -> None:
        for name, default in (
            ("stride", 1),
            ("padding", 0),
            ("dilation", 1),
            ("output_padding", 0),
        ):
            given = getattr(self, name)
            if len(given) not in (0, self.rank):
                raise ValueError(f"{name} has {len(given)} entries for spatial rank {self.rank}")
            if not given:
                object.__setattr__(self, name, (default,) * self.rank)

    @property
    def rank(self) -> int:
        return self.weight.dim() - 2

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def in_channels(self) -> int:
        return self.weight.shape[0 if self.transposed else 1] * (
            1 if self.transposed else self.groups
        )

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def is_padded(self) -> bool:
        return any(self.padding)

    @property
    def is_pointwise(self) -> bool:
        """One tap, no padding: every output position reads exactly one input position."""
        return not self.transposed and prod(self.kernel) == 1 and not self.is_padded


Operator = Conv | ScaleShift
Kind = TypeVar("Kind", bound=Operator)


def identity(channels: int, rank: int) -> ScaleShift:
    """The operator that a skip connection is, on `channels` channels, in float64."""
    return ScaleShift(
        torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64), rank
    )


def nonzero(tensor: Tensor | None) -> Tensor | None:
    """The tensor, or None where it holds only zeros."""
    return tensor if tensor is None or may_be_nonzero(tensor) else None


def may_be_nonzero(tensor: Tensor) -> bool:
    """Whether a value may not be zero: on the meta device and in `for_any_values`, any may be."""
    return tensor.is_meta or values_are_open() or bool(tensor.any())


def values_are_open() -> bool:
    """Whether merges shall depend on shapes alone, see `for_any_values`."""
    return _FOR_ANY_VALUES.get()


@contextmanager
def for_any_values() -> Iterator[None]:
    """Within it no tensor counts as zero, so that merges depend on shapes alone.

    What is merged for one set of weights then fits every other one.
    """
    token = _FOR_ANY_VALUES.set(True)
    try:
        yield
    finally:
        _FOR_ANY_VALUES.reset(token)


def as_conv(operator: Operator) -> Conv:
    """A scale-shift as a depthwise 1x1 convolution."""
    if isinstance(operator, Conv):
        return operator
    weight = operator.scale.view(-1, *(1,) * (operator.rank + 1))
    return Conv(weight, nonzero(operator.shift), groups=operator.out_channels)


def map_tensors(operator: Kind, function: Callable[[Tensor], Tensor]) -> Kind:
    """The operator with `function` applied to each of its tensors, as a new object."""
    made = copy(operator)
    for name, value in vars(operator).items():
        if isinstance(value, Tensor):
            object.__setattr__(made, name, function(value))
    return made


def in_double(operator: Kind, device: torch.device | None = None) -> Kind:
    """The operator with its tensors in float64, in which all merging is done, and on a device."""
    return map_tensors(operator, lambda tensor: tensor.detach().to(device, torch.float64))


def side_by_side(f: Operator, g: Operator) -> tuple[Operator, Operator]:
    """Both in float64, on the device of the model's weights.

    A skip, a number or a pooling has none: it is written down on the CPU.
    """
    first, second = ((op.weight if isinstance(op, Conv) else op.scale).device for op in (f, g))
    device = second if first.type == "cpu" else first
    return in_double(f, device), in_double(g, device)


def on_meta(operator: Kind) -> Kind:
    """The operator's geometry alone: composing it is free and tells what a merge would cost."""
    return map_tensors(operator, lambda tensor: tensor.detach().to("meta"))


def apply(operator: Operator, x: Tensor) -> Tensor:
    """The operator's value on `x`; the definition that every rewrite is held to.

    Args:
        operator: of spatial rank r.
        x: [N, C, *spatial] for r > 0, [..., C] for r = 0 and for any scale-shift.
    """
    if isinstance(operator, ScaleShift):
        shape = (-1, *(1,) * operator.rank)
        return x * operator.scale.view(shape) + operator.shift.view(shape)
    y = _convolve(operator, x, operator.weight, operator.groups)
    if operator.border is not None:
        ones = torch.ones_like(x[:1, :1])
        y = y + _convolve(operator, ones, operator.border.unsqueeze(1), 1)
    if operator.bias is not None:
        y = y + operator.bias.view(-1, *(1,) * operator.rank)
    return y


def _convolve(operator: Conv, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    if operator.rank == 0:
        return torch.nn.functional.linear(x, weight)
    padding: tuple[int, ...] = operator.padding
    if operator.padding_mode != "zeros":
        pads = [p for size in reversed(padding) for p in (size, size)]
        x = torch.nn.functional.pad(x, pads, mode=operator.padding_mode)
        padding = (0,) * operator.rank
    return torch.convolution(
        x,
        weight,
        None,
        operator.stride,
        padding,
        operator.dilation,
        operator.transposed,
        operator.output_padding,
        groups,
    )
