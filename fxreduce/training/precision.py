"""Mixed precision, where the device has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxreduce.errors import UnsupportedError


@dataclass(frozen=True)
class Precision:
    """The type that the forward is computed in, and the scaling of gradients that it needs.

    Attributes:
        device: Where it is computed.
        dtype: Of autocast; None computes as the weights are.
        scaler: Keeps small gradients apart from zero in float16.
    """

    device: torch.device
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler

    @classmethod
    def of(cls, name: str, device: torch.device) -> Precision:
        """The precision called `float32`, `bfloat16`, `float16`, or `auto` for the device's best.

        Raises:
            UnsupportedError: The device has no mixed precision.
        """
        if name == "auto":
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
            name = "bfloat16" if fast else "float16" if device.type == "cuda" else "float32"
        dtype = None if name == "float32" else getattr(torch, name)
        if dtype is not None and not torch.amp.is_autocast_available(device.type):
            raise UnsupportedError(f"{device} has no mixed precision; train in float32")
        # Without scaling it steps as if it were not there.
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        return cls(device, dtype, scaler)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def step(
        self, loss: Tensor, optimiser: Optimizer, module: nn.Module, clip: float | None
    ) -> None:
        """Gradients of the loss, their norm bounded by `clip`, and a step of the optimiser."""
        self.scaler.scale(loss).backward()
        if clip is not None:
            self.scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        self.scaler.step(optimiser)
        self.scaler.update()
