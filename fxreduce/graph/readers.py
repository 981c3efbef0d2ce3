"""The readers of torch's own affine operators: modules, torch functions and ATen overloads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.graph.affine import Reader, register_operator
from fxreduce.graph.batch_norms import BATCH_NORMS, read_batch_norm
from fxreduce.graph.layout import channel_axis
from fxreduce.graph.nodes import (
    are_constant,
    argument,
    implements,
    is_size,
    module_input,
    module_of,
    operation,
    per_axis,
    shape_of,
    tensor_of,
)
from fxreduce.operators.affine import Conv, Operator, Refusal, ScaleShift, nonzero

Read = tuple[Operator, Node] | Refusal | None
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _conv_module(graph_module: GraphModule, node: Node) -> Read:
    module, given = module_of(graph_module, node), module_input(node)
    if given is None or not isinstance(module, (*_CONVS, *_TRANSPOSED)):
        return None
    transposed = isinstance(module, _TRANSPOSED)
    bases = _TRANSPOSED if transposed else _CONVS
    methods = ("forward",) if transposed else ("forward", "_conv_forward")
    if not any(implements(module, base, methods) for base in bases):
        return Refusal(f"{type(module).__name__} overrides the forward of a convolution")
    return _conv(
        given,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        padding_mode=module.padding_mode,
        transposed=transposed,
        output_padding=module.output_padding if transposed else (),
    )


_CONV = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_CONV_TRANSPOSE = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}


def _conv_function(graph_module: GraphModule, node: Node) -> Read:
    """conv2d(input, weight, bias, *options), conv_transpose2d likewise with others."""
    transposed = "transpose" in (operation(node) or "")
    given, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    kernel = tensor_of(graph_module, weight)
    if not isinstance(given, Node) or not are_constant(graph_module, weight, bias):
        return None
    assert kernel is not None  # as the weight is a constant
    taken = enumerate((_CONV_TRANSPOSE if transposed else _CONV).items(), 3)
    options = {name: argument(node, place, name, default) for place, (name, default) in taken}
    return _conv(given, kernel, tensor_of(graph_module, bias), **options, transposed=transposed)


def _convolution(graph_module: GraphModule, node: Node) -> Read:
    """aten.convolution, whose nine arguments are all given by place."""
    given, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    kernel = tensor_of(graph_module, weight)
    if not isinstance(given, Node) or not are_constant(graph_module, weight, bias):
        return None
    assert kernel is not None  # as the weight is a constant
    return _conv(
        given,
        kernel,
        tensor_of(graph_module, bias),
        stride,
        padding,
        dilation,
        groups,
        transposed=bool(transposed),
        output_padding=output_padding if transposed else (),
    )


def _conv(
    given: Node,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    **more: Any,
) -> Read:
    rank = weight.dim() - 2
    stride, dilation = per_axis(stride, rank), per_axis(dilation, rank)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(size % 2 for size in total):
            return Refusal("its 'same' padding is one wider on one side")
        padding = tuple(size // 2 for size in total)
    more["output_padding"] = per_axis(more.get("output_padding", ()), rank)
    padding = per_axis(padding, rank)
    return Conv(weight, _given(bias), stride, padding, dilation, groups, **more), given


def _given(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else nonzero(bias.detach())


def _linear_module(graph_module: GraphModule, node: Node) -> Read:
    module, given = module_of(graph_module, node), module_input(node)
    if given is None or not isinstance(module, nn.Linear):
        return None
    if not implements(module, nn.Linear, ("forward",)):
        return Refusal(f"{type(module).__name__} overrides the forward of a Linear")
    return Conv(module.weight, _given(module.bias)), given


def _linear_function(graph_module: GraphModule, node: Node) -> Read:
    given, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    matrix = tensor_of(graph_module, weight)
    if not isinstance(given, Node) or not are_constant(graph_module, weight, bias):
        return None
    if matrix is None or matrix.dim() != 2:
        return None
    return Conv(matrix, _given(tensor_of(graph_module, bias))), given


def _batch_norm(graph_module: GraphModule, node: Node) -> Read:
    call = read_batch_norm(graph_module, node)
    return call if call is None or isinstance(call, Refusal) else call.operator()


def _constant_arithmetic(graph_module: GraphModule, node: Node) -> Read:
    """x * c, x / c, x + c, x - c and their mirror images, for a constant c per channel."""
    name = (operation(node) or "").removesuffix("_")
    left, right = argument(node, 0, "input"), argument(node, 1, "other")
    values = [_constant(graph_module, side) for side in (left, right)]
    if (values[0] is None) == (values[1] is None) or node.kwargs.get("alpha", 1) != 1:
        return None
    if node.kwargs.get("rounding_mode") is not None:
        return None
    given, constant = (right, values[0]) if values[1] is None else (left, values[1])
    mirrored = values[1] is None
    if not isinstance(given, Node) or constant is None or (mirrored and name == "div"):
        return None
    if is_size(given):
        return None
    placed = _per_channel(graph_module, given, constant)
    if isinstance(placed, Refusal):
        return placed
    values_per_channel, rank = placed
    one, zero = torch.ones_like(values_per_channel), torch.zeros_like(values_per_channel)
    scale, shift = {
        "mul": (values_per_channel, zero),
        "div": (1 / values_per_channel, zero),
        "add": (one, values_per_channel),
        "sub": (-one, values_per_channel) if mirrored else (one, -values_per_channel),
    }[name]
    return ScaleShift(scale, shift, rank), given


def _constant(graph_module: GraphModule, value: Any) -> Tensor | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(value, dtype=torch.float64)
    found = tensor_of(graph_module, value)
    return found.detach().double() if found is not None and found.is_floating_point() else None


def _per_channel(
    graph_module: GraphModule, given: Node, constant: Tensor
) -> tuple[Tensor, int] | Refusal:
    """The constant as [C], and the number of axes right of the channel axis."""
    shape = shape_of(given)
    if shape is None:
        return Refusal(
            "nothing tells along which axis the constant lies; capture the model with "
            "example inputs"
        )
    if not shape:
        return Refusal("a single number has no channels")
    if constant.numel() == 1 and constant.dim() <= len(shape):
        axis = channel_axis(graph_module, given, len(shape))
        return constant.reshape(1).expand(shape[axis]).clone(), -axis - 1
    wide = [axis for axis in range(-constant.dim(), 0) if constant.shape[axis] != 1]
    if len(wide) != 1 or constant.dim() > len(shape) or shape[wide[0]] != constant.numel():
        return Refusal(f"a constant of shape {tuple(constant.shape)} varies within a channel")
    return constant.flatten(), -wide[0] - 1


_READERS: tuple[tuple[Reader, tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    (_conv_module, (*_CONVS, *_TRANSPOSED), ()),
    (_conv_function, (), ("conv1d", "conv2d", "conv3d")),
    (_conv_function, (), tuple(f"conv_transpose{rank}d" for rank in (1, 2, 3))),
    (_convolution, (), ("convolution",)),
    (_linear_module, (nn.Linear,), ()),
    (_linear_function, (), ("linear",)),
    (_batch_norm, BATCH_NORMS, ("batch_norm",)),
    (
        _constant_arithmetic,
        (),
        tuple(f"{name}{form}" for name in ("mul", "div", "add", "sub") for form in ("", "_")),
    ),
)
for _reader, _modules, _operations in _READERS:
    register_operator(_reader, modules=_modules, operations=_operations)
