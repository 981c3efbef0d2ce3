"""A cost model: how many weights an operator has, where storage is what is scarce."""

from dataclasses import dataclass

from fxreduce.registry import Conv, ScaleShift, Setting, register_cost


@dataclass(frozen=True)
class Weights:
    """The number of weights and biases, whatever the input."""

    name: str = "weights"

    def cost(self, operator: Conv | ScaleShift, setting: Setting) -> float:
        if isinstance(operator, ScaleShift):
            return operator.scale.numel() + operator.shift.numel()
        tensors = (operator.weight, operator.bias, operator.border)
        return sum(each.numel() for each in tensors if each is not None)


def register() -> None:
    """Let `cost="weights"` name it."""
    register_cost("weights", Weights())
