"""Where an operator works: the input that it gets, which its cost depends on besides itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from fxreduce.operators.affine import Conv, Operator

# Samples and positions of each axis where nothing tells how many there are: so many positions that
# borders hardly count and that many strides can follow one another.
_NOMINAL = 1 << 12


@dataclass(frozen=True)
class Setting:
    """The input of an operator.

    Attributes:
        shape: `[N, C, *spatial]`, or `[..., C]` for spatial rank 0.
        dtype, device: of the input.
        channels_last: whether its memory has the channels last.
        nominal: whether the shape is only assumed, as no example inputs told it.
        sliced: whether it is a thin slice, copied out of a larger tensor, and the output copied
            back into one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    channels_last: bool = False
    nominal: bool = False
    sliced: bool = False

    @classmethod
    def assumed(cls, operator: Operator) -> Setting:
        """A large input that the operator takes, for where its true shape is not known."""
        spatial = (_NOMINAL,) * operator.rank
        return cls((1 if spatial else _NOMINAL, operator.in_channels, *spatial), nominal=True)

    def after(self, operator: Operator) -> Setting:
        """The setting of what follows the operator."""
        return replace(self, shape=output_shape(operator, self.shape))

    def resized(self, axis: int, length: int) -> Setting:
        """The setting with another length of an axis counted from the right."""
        place = len(self.shape) + axis
        return replace(self, shape=(*self.shape[:place], length, *self.shape[place + 1 :]))


def settings_along(operators: Sequence[Operator], first: Setting) -> Iterator[Setting]:
    """The setting of each of the operators that follow one another, the first one's given."""
    for operator in operators:
        yield first
        first = first.after(operator)


def output_shape(operator: Operator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the operator's output for an input shape; axes shrink to no less than one."""
    channels = len(shape) - operator.rank - 1
    spatial = shape[channels + 1 :]
    if isinstance(operator, Conv):
        spatial = tuple(
            max(_length(operator, axis, length), 1) for axis, length in enumerate(spatial)
        )
    return (*shape[:channels], operator.out_channels, *spatial)


def positions(operator: Operator, shape: tuple[int, ...]) -> int:
    """Samples times positions of a tensor of that shape, whose channel axis is the operator's."""
    channels = len(shape) - operator.rank - 1
    return prod(shape[:channels]) * prod(shape[channels + 1 :])


def _length(operator: Conv, axis: int, length: int) -> int:
    reach = operator.dilation[axis] * (operator.kernel[axis] - 1)
    stride, padding = operator.stride[axis], 2 * operator.padding[axis]
    if operator.transposed:
        return (length - 1) * stride - padding + reach + operator.output_padding[axis] + 1
    return (length + padding - reach - 1) // stride + 1
