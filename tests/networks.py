"""Networks of tests: random ones, running the steps that a strategy draws, and hand-wired ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[["Network", list[Tensor]], Tensor]


class Network(nn.Module):
    """Runs steps, each on the values of those before; returns some of the values.

    A step is a function of the network, which holds the modules, and of the values so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.returned: Sequence[int] = (-1,)
        self.story: list[str] = []

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            values.append(step(self, values))
        return tuple(values[place] for place in self.returned)

    def keep(self, module: nn.Module) -> str:
        """Hold a module, in eval mode and float64, under a name of its own."""
        name = f"m{len(self._modules)}"
        self.add_module(name, module.double().eval())
        return name

    def extend(self, step: Step, values: list[Tensor], told: str) -> bool:
        """Append the step and its value, unless it does not run on these values."""
        try:
            with torch.no_grad():
                values.append(step(self, values))
        except (RuntimeError, ValueError, IndexError):
            return False
        self.steps.append(step)
        self.story.append(told)
        return True

    def extra_repr(self) -> str:
        return "\n".join((*self.story, f"returns {self.returned}"))


def call(name: str, place: int) -> Step:
    return lambda net, values: getattr(net, name)(values[place])


class Wiring(nn.Module):
    """Modules, and a function of them and of the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
