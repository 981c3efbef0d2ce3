"""A small graph for each pass, on which the documentation shows what the pass does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxreduce.graph.capture import capture
from fxreduce.graph.values import name_values
from fxreduce.operators.cost import FlopsCost
from fxreduce.passes.base import Pass
from fxreduce.passes.crop_kernels import CropKernels
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.observe import Observe
from fxreduce.passes.pipeline import PREPARE, finishing, merging
from fxreduce.report.graph_view import GraphView, graph_view


class Wired(nn.Module):
    """Modules, and a function of them and of the input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@dataclass(frozen=True)
class Example:
    """A model and its input; `given` are further passes to choose from than the pipeline's."""

    model: nn.Module
    input: tuple[int, ...]
    given: tuple[Pass, ...] = field(default=())

    def views(self, name: str) -> tuple[GraphView, GraphView]:
        """The graph before and after the pass of that name."""
        graph_module = capture(self.model.eval(), torch.zeros(self.input))
        name_values(graph_module)  # by which planning tells `crop_kernels` where
        passes = (*self.given, *PREPARE, *merging(FlopsCost()), *finishing(FlopsCost()))
        (rewrite,) = (each for each in passes if each.name == name)
        result = rewrite.run(graph_module)
        assert result.modified, f"the example of {name} shows nothing"
        return graph_view(graph_module), graph_view(result.graph_module)


def conv(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Conv2d:
    """A convolution of odd kernel that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def _rows(net: nn.Module, x: Tensor) -> Tensor:
    y = net.first(x)
    tokens = y.view(2, 5, 8)
    return net.second(tokens.view(-1, 8))


def _checked(net: nn.Module, x: Tensor) -> Tensor:
    y = net.conv(x)
    torch._assert(y.dim() == 4, "images")
    return net.bn(y)


EXAMPLES = {
    "linearise": Example(
        nn.Sequential(conv(3, 8, 1), nn.ReLU(), conv(8, 4, 1)), (1, 3, 8, 8), (Linearise(("1",)),)
    ),
    "observe": Example(nn.Sequential(conv(3, 8, 1), nn.GELU()), (1, 3, 8, 8), (Observe(),)),
    "drop_checks": Example(
        Wired(_checked, conv=conv(3, 8, 3), bn=nn.BatchNorm2d(8)), (1, 3, 8, 8)
    ),
    "drop_identities": Example(
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 4)), (2, 8)
    ),
    "single_assignment": Example(
        Wired(
            lambda net, x: (lambda y: functional.relu_(y) + y)(net.conv(x)), conv=conv(3, 8, 3)
        ),
        (1, 3, 8, 8),
    ),
    "drop_reshapes": Example(
        Wired(_rows, first=nn.Linear(8, 8), second=nn.Linear(8, 4)), (10, 8)
    ),
    "crop_kernels": Example(
        nn.Sequential(conv(8, 8, 3), conv(8, 8, 3)), (1, 8, 8, 8), (CropKernels(("1",)),)
    ),
    "commute_pooling": Example(
        nn.Sequential(conv(8, 4, 1), nn.AvgPool2d(2)), (1, 8, 8, 8)
    ),
    "fuse_chain": Example(
        nn.Sequential(conv(8, 32, 1), nn.BatchNorm2d(32), conv(32, 4, 1)), (1, 8, 8, 8)
    ),
    "fuse_region": Example(
        Wired(lambda net, x: net.widen(net.narrow(x)) + net.beside(x), narrow=conv(64, 4, 1),
              widen=conv(4, 64, 1), beside=conv(64, 64, 3)),
        (1, 64, 8, 8),
    ),
    "fuse_parallel": Example(
        Wired(lambda net, x: net.wide(x) + net.narrow(x) + x, wide=conv(8, 8, 3),
              narrow=conv(8, 8, 1)),
        (1, 8, 8, 8),
    ),
    "fuse_flatten": Example(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(8, 16, 1), nn.Flatten(), nn.Linear(16, 4)),
        (1, 8, 8, 8),
    ),
    "fold_scale": Example(
        Wired(lambda net, x: net.head(net.bn(x).flatten(1)), bn=nn.BatchNorm2d(4),
              head=nn.Linear(64, 4)),
        (2, 4, 4, 4),
    ),
    "fold_norm": Example(
        Wired(lambda net, x: (lambda y: net.query(y) + net.key(y).relu())(net.norm(x)),
              norm=nn.LayerNorm(8), query=nn.Linear(8, 8), key=nn.Linear(8, 8)),
        (2, 5, 8),
    ),
    "scale_cat": Example(
        Wired(lambda net, x: net.bn(torch.cat([net.a(x), net.b(x)], 1)), a=conv(4, 8, 1),
              b=conv(4, 8, 3), bn=nn.BatchNorm2d(16)),
        (1, 4, 8, 8),
    ),
    "stack_siblings": Example(
        Wired(lambda net, x: torch.cat([net.a(x), net.b(x)], 1), a=conv(4, 8, 1), b=conv(4, 8, 1)),
        (1, 4, 8, 8),
    ),
    "split_cat": Example(
        Wired(lambda net, x: net.head(torch.cat([net.a(x), x], 1)), a=conv(4, 64, 1),
              head=conv(68, 4, 1)),
        (1, 4, 16, 16),
    ),
    "fuse_shared": Example(
        Wired(lambda net, x: (lambda y: net.left(y).relu() + net.right(y).sigmoid())(net.bn(x)),
              bn=nn.BatchNorm2d(4), left=conv(4, 4, 1), right=conv(4, 4, 1)),
        (1, 4, 8, 8),
    ),
    "fuse_padded": Example(
        nn.Sequential(conv(1, 64, 3, bias=False), conv(64, 64, 3, stride=2)), (1, 1, 128, 128)
    ),
}  # fmt: skip
