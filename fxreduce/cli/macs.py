"""An independent count of multiply-adds, by ptflops, to hold the report's own count against."""

from __future__ import annotations

import copy
import io

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fxreduce.cli.errors import missing_extra


def ptflops_macs(module: nn.Module, image_shape: tuple[int, ...]) -> int:
    """The multiply-adds of all convolutions and linears for an image of `image_shape` `[C, H, W]`.

    ptflops' ATen counter looks at the operations that run, whatever modules they come from, and
    leaves out batch-norm, activations and additions. Two of its habits are taken out exactly: it
    adds one per output element of an operation with a bias, so that biases are removed first; and
    it counts what runs once a batch, like the border of a merged convolution, so that the figure is
    what a second image adds to a batch of one.

    Raises:
        UnsupportedError: ptflops is not installed.
    """
    stripped = copy.deepcopy(module)
    for layer in stripped.modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            layer.bias = None
    parameter = next(stripped.parameters())
    one, two = (_count(stripped, parameter.new_zeros((images, *image_shape))) for images in (1, 2))
    return two - one


def _count(module: nn.Module, inputs: torch.Tensor) -> int:
    try:
        from ptflops import get_model_complexity_info
    except ImportError:
        raise missing_extra("ptflops", "the count of multiply-adds", "demo") from None
    macs, _ = get_model_complexity_info(
        module,
        tuple(inputs.shape[1:]),
        input_constructor=lambda _: inputs,
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        ost=io.StringIO(),
    )
    if not isinstance(macs, int):
        raise TypeError("ptflops could not run the module; its reason is printed above")
    return macs
