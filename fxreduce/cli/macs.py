"""An independent count of multiply-adds, by ptflops, to hold the report's own count against."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import nn

from fxreduce.errors import missing_extra


def ptflops_macs(module: nn.Module, image_shape: tuple[int, ...]) -> int:
    """The multiply-adds of all convolutions and linears for one image of `image_shape` `[C, H, W]`.

    ptflops' ATen counter looks at the operations that run, whatever modules they come from, and
    leaves out batch-norm, activations and additions. It counts a bias as one multiply-add for each
    element of the output; its own arithmetic is asked for the figure without a bias.

    Raises:
        UnsupportedError: ptflops is not installed.
    """
    try:
        from ptflops import get_model_complexity_info
        from ptflops.aten_ops import addmm_flop, conv_flop
    except ImportError:
        raise missing_extra("ptflops", "the count of multiply-adds", "demo") from None

    def convolution(inputs: Any, outputs: Any) -> int:
        data, weight, _, *geometry = inputs
        return int(conv_flop([data, weight, None, *geometry], outputs))

    def linear(inputs: Any, outputs: Any) -> int:
        return int(addmm_flop([None, *inputs[1:]], outputs))

    macs, _ = get_model_complexity_info(
        copy.deepcopy(module),  # ptflops leaves hooks behind
        image_shape,
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        custom_modules_hooks={
            torch.ops.aten.convolution: convolution,
            torch.ops.aten.addmm: linear,
        },
        ost=io.StringIO(),
    )
    if not isinstance(macs, int):
        raise TypeError("ptflops could not run the module; its reason is printed above")
    return macs
