"""Counts the multiply-adds that a program dispatches, in its convolutions and matrix products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The multiply-adds of a call, of its arguments and its result.
_COUNTS: dict[str, Callable[[Any, Tensor], float]] = {
    "convolution": lambda args, out: out.numel() * prod(args[1].shape[1:]),
    "mm": lambda args, out: out.numel() * args[0].shape[-1],
    "bmm": lambda args, out: out.numel() * args[0].shape[-1],
    "addmm": lambda args, out: out.numel() * args[1].shape[-1],
    "baddbmm": lambda args, out: out.numel() * args[1].shape[-1],
    "linalg_cholesky_ex": lambda args, _: args[0].numel() * args[0].shape[-1] / 6,
    "cholesky_solve": lambda args, _: args[0].numel() * args[1].shape[-1],
    "_scaled_dot_product_flash_attention_for_cpu": lambda args, out: (
        2 * out.numel() * args[1].shape[-2]
    ),
}


class Work(TorchDispatchMode):
    """Counts while it is entered; a multiply-add in float64 counts as two.

    Attributes:
        counted: by the name of the operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    @property
    def total(self) -> float:
        return self.counted.total()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if (count := _COUNTS.get(name)) is not None:
            out = result[0] if isinstance(result, tuple) else result
            self.counted[name] += count(args, out) * (2 if out.dtype == torch.float64 else 1)
        return result
