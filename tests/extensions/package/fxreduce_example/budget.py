"""A budget for models that predict numbers, of which no class is the largest."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxreduce.registry import Context, Judge, register_budget


@dataclass(frozen=True)
class OutputError:
    """Remove rectifiers as long as the outputs' relative squared error stays below a limit."""

    limit: float

    def begin(self, context: Context) -> Judge:
        return ErrorJudge(self.limit, context, context.outputs(context.original))


@dataclass(frozen=True)
class ErrorJudge(Judge):
    """Compares outputs, tensors of any shape, on the held-out calibration batches."""

    limit: float
    context: Context
    expected: Sequence[Tensor]

    def after(self, candidate: GraphModule) -> str | None:
        seen = torch.cat([each.flatten() for each in self.context.outputs(candidate)])
        expected = torch.cat([each.flatten() for each in self.expected])
        error = float((seen - expected).square().sum() / expected.square().sum())
        if error <= self.limit:
            return None
        return f"without it the output's relative squared error is {error:.3g}, above {self.limit}"


def register() -> None:
    """Let `budget="output-error"` name it."""
    register_budget("output-error", OutputError(0.01))
