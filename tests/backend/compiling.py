"""What the tests of the backend share: models, and an inner backend that counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.graph.nodes import operation
from tests.checks import randomised

SIZE = 4


class Block(nn.Module):
    """A residual block: two merges to make, a rectifier in between, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(SIZE, SIZE, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(SIZE)
        self.relu = nn.ReLU(inplace=True)
        self.narrow = nn.Conv2d(SIZE, 1, 1)
        self.wide = nn.Conv2d(1, SIZE, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.narrow(self.relu(self.norm(self.conv(x))))) + x


class Network(nn.Module):
    """Two blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


class Broken(nn.Module):
    """Two blocks in two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.last(x)


class Inner:
    """A backend that keeps the graphs it is given, and lets another one compile them."""

    def __init__(self, name: str = "eager") -> None:
        self.name = name
        self.graphs: list[GraphModule] = []
        self.given: list[tuple[GraphModule, Sequence[Any]]] = []

    def __call__(self, graph_module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs.append(graph_module)
        compiler: Any = torch._dynamo.lookup_backend(self.name)
        return compiler(graph_module, inputs)

    @property
    def compilations(self) -> int:
        return len(self.graphs)

    def calls(self, place: int = -1) -> Counter[str]:
        """How often a graph calls each operation."""
        return calls(self.graphs[place])


def calls(graph_module: GraphModule) -> Counter[str]:
    """How often a graph calls each operation."""
    return Counter(name for node in graph_module.graph.nodes if (name := operation(node)))


def network() -> nn.Module:
    """A network in eval mode and float64 whose batch-norms change something."""
    return randomised(Network())


def image(batch: int = 2, size: int = 6) -> Tensor:
    return torch.rand(batch, SIZE, size, size, dtype=torch.float64)


def stem() -> nn.Module:
    """A padded convolution behind a padded one, which merge where sizes are known."""
    return randomised(
        nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1))
    )


def photo(batch: int = 2, *, high: int = 64, wide: int = 80) -> Tensor:
    """An input of a stem, large enough for merging to pay."""
    return torch.randn(batch, 3, high, wide, dtype=torch.float64)


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (each for each in model.modules() if isinstance(each, nn.BatchNorm2d))
