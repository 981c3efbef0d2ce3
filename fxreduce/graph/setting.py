"""The setting of an affine call: what the graph tells of the input that it gets."""

from __future__ import annotations

from typing import Any

import torch

from fxreduce.graph.affine import AffineCall
from fxreduce.graph.modules import is_channels_last
from fxreduce.graph.nodes import shape_of
from fxreduce.operators.setting import Setting


def setting_of(call: AffineCall) -> Setting:
    """The shape of the call's input, where it is known, and the dtype and place of its weights."""
    known = shape_of(call.input)
    if known is None:
        return Setting.assumed(call.operator)
    shape = tuple(map(example_size, known))
    if call.like is None:
        return Setting(shape)
    like = call.like
    last = like.dim() == 4 and is_channels_last(like)
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return Setting(shape, dtype, str(like.device), last)


def example_size(size: Any) -> int:
    """The size; where it is a symbol, what it was in the example, or one."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return hint if isinstance(hint, int) else 1
