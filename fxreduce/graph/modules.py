"""The modules that rewrites leave behind where torch has none, and how an operator becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import register_operator
from fxreduce.graph.nodes import module_input, module_of
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, nonzero

# The most bytes that a constant offset may take, which is as large as what it is added to.
_OFFSET = 1 << 24
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class ChannelAffine(nn.Module):
    """y_c = weight_c * x_c + bias_c on channel axis -(rank + 1); weight and bias are [C]."""

    def __init__(self, weight: Tensor, bias: Tensor, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * self.rank)
        # Twice as fast as torch.addcmul, which does not vectorise over broadcast operands.
        return (x * self.weight.view(shape)).add_(self.bias.view(shape))

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, rank={self.rank}"


class BorderedConv(nn.Module):
    """A zero-padded convolution with one more input channel, of ones, that is never stored.

    It computes conv(x) + conv(1) + bias, where conv(1) has the kernel `border` [Cout, 1, *k] and
    one image's size: inside it is a constant, at the border it leaves out what the padding does.
    For inputs of a fixed size, a compiler that knows the weights makes conv(1) + bias a constant.
    """

    one: Tensor

    def __init__(self, conv: nn.Module, border: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.conv = conv
        self.rank = border.dim() - 2  # spatial axes
        self.border = nn.Parameter(border)
        self.bias = None if bias is None else nn.Parameter(bias)
        # A tensor of the module's own, not one made in `forward`, which compilers do not fold.
        one = border.new_ones((1,) * border.dim())
        self.register_buffer("one", one, persistent=False)

    def offset(self, sizes: Sequence[int]) -> Tensor:
        """conv(1) + bias for inputs of these spatial sizes: [Cout, *sizes of the output]."""
        conv: Any = self.conv
        # Of its own type already; but torch.fx before 2.9 has no sizes that it traces in what is
        # called on a buffer, which it does not trace, unlike a parameter.
        one = self.one.type_as(self.border)
        offset = torch.convolution(
            one.expand(1, 1, *sizes),
            self.border,
            self.bias,
            conv.stride,
            conv.padding,
            conv.dilation,
            False,
            (0,) * self.rank,
            1,
        )
        return offset[0]

    def for_sizes(self, sizes: Sequence[int]) -> nn.Module:
        """The same for inputs of these sizes alone, with conv(1) + bias computed, if it fits."""
        offset = self.offset(sizes)
        return self if offset.nbytes > _OFFSET else OffsetConv(self.conv, offset)

    def forward(self, x: Tensor) -> Tensor:
        # Sizes one by one: torch.fx can trace that, and an input without a batch axis has them too.
        sizes = [x.shape[axis] for axis in range(-self.rank, 0)]
        return _added(self.conv(x), self.offset(sizes))


class OffsetConv(nn.Module):
    """conv(x) + offset for inputs of one size; offset is [Cout, *spatial sizes of the output]."""

    offset: Tensor

    def __init__(self, conv: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        return _added(self.conv(x), self.offset)


def _added(result: Tensor, offset: Tensor) -> Tensor:
    """The sum, in the memory of the first."""
    # Without a batch axis: what has the very shape of the result, and its strides, inductor adds
    # within the convolution, in the memory of the offset, be it a frozen constant.
    return result.add_(offset)


def to_module(operator: Operator, like: Tensor | None) -> nn.Module:
    """The operator as a module in eval mode, with the dtype and device of `like`.

    A 4-D weight takes over the memory format of `like`, and where `like` is a frozen parameter the
    module is frozen too. Without `like`, torch's defaults serve.
    """
    frozen = isinstance(like, nn.Parameter) and not like.requires_grad
    like = torch.empty(0) if like is None else like
    module = _scale(operator, like) if isinstance(operator, ScaleShift) else _conv(operator, like)
    return module.requires_grad_(not frozen).eval()


def _scale(operator: ScaleShift, like: Tensor) -> nn.Module:
    return ChannelAffine(_cast(operator.scale, like), _cast(operator.shift, like), operator.rank)


def _conv(operator: Conv, like: Tensor) -> nn.Module:
    weight = _cast(operator.weight, like)
    if like.dim() == 4 and weight.dim() == 4 and is_channels_last(like):
        weight = weight.contiguous(memory_format=torch.channels_last)
    bias = None if operator.bias is None else _cast(operator.bias, like)
    border = None if operator.border is None else nonzero(operator.border)
    conv = _empty(operator, bias is not None and border is None)
    conv.weight = nn.Parameter(weight)
    if border is None:
        if bias is not None:
            conv.bias = nn.Parameter(bias)
        return conv
    return BorderedConv(conv, _cast(border, like).unsqueeze(1), bias)


def _empty(operator: Conv, bias: bool) -> nn.Module:
    """The torch module of the operator's geometry, with weights that hold no memory."""
    sizes = (operator.in_channels, operator.out_channels)
    if operator.rank == 0:
        return nn.Linear(*sizes, bias=bias, device="meta")
    options: dict[str, Any] = {
        "kernel_size": operator.kernel,
        "stride": operator.stride,
        "padding": operator.padding,
        "dilation": operator.dilation,
        "groups": operator.groups,
        "bias": bias,
        "padding_mode": operator.padding_mode,
        "device": "meta",
    }
    if operator.transposed:
        options["output_padding"] = operator.output_padding
        return _TRANSPOSED[operator.rank - 1](*sizes, **options)
    return _CONVS[operator.rank - 1](*sizes, **options)


def _cast(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.detach().to(dtype=like.dtype, device=like.device).contiguous()


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a 4-D tensor has its channels last in memory, and not by the chance of its sizes."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _read_channel_affine(
    graph_module: GraphModule, node: Node
) -> tuple[Operator, Node] | Refusal | None:
    module, given = module_of(graph_module, node), module_input(node)
    if given is None or not isinstance(module, ChannelAffine):
        return None
    return ScaleShift(module.weight, module.bias, module.rank), given


def _read_bordered_conv(
    graph_module: GraphModule, node: Node
) -> tuple[Operator, Node] | Refusal | None:
    module, given = module_of(graph_module, node), module_input(node)
    if given is None or not isinstance(module, BorderedConv):
        return None
    conv: Any = module.conv
    return Conv(
        conv.weight,
        module.bias,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        border=module.border.squeeze(1),
    ), given


register_operator(_read_channel_affine, modules=(ChannelAffine,))
register_operator(_read_bordered_conv, modules=(BorderedConv,))
