"""An affine operator: a Linear with a low-rank addition, as fine-tuning with adapters leaves it."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.registry import Conv, Refusal, module_input, module_of, register_operator


class LowRankLinear(nn.Module):
    """y = (W + B A) x + b, with x [..., inputs] and y [..., outputs]."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.randn(outputs, rank) / rank**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def read(graph_module: GraphModule, node: Node) -> tuple[Conv, Node] | Refusal | None:
    """The operator that a call of the module is, and the node of its input."""
    module, given = module_of(graph_module, node), module_input(node)
    if not isinstance(module, LowRankLinear) or given is None:
        return None
    if any(part._forward_hooks for part in module.modules()):
        return Refusal("a module in it has forward hooks, which a merged operator would not run")
    return Conv(module.base.weight + module.up @ module.down, module.base.bias), given


def register() -> None:
    """Let fxreduce merge it."""
    register_operator(read, modules=[LowRankLinear])
