"""What removes rectifiers from a graph of torch.compile, whatever decides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.fx import GraphModule

from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.passes.base import Pass


@dataclass(frozen=True)
class Reduction:
    """A way to remove rectifiers.

    Attributes:
        removal: the passes that do, before merging.
        fit: passes behind merging; where one of them refuses anything, another way is taken.
        refusals: what is left undone, and why.
    """

    removal: tuple[Pass, ...] = ()
    fit: tuple[Pass, ...] = ()
    refusals: tuple[RefusedRewrite, ...] = ()


class Removal(Protocol):
    """Decides which rectifiers go; compared and hashed by what it decides."""

    def fits(self, graph_module: GraphModule) -> bool:
        """Whether it is for such a graph at all, whatever its weights, which are attributes."""
        ...

    def __call__(self, graph_module: GraphModule) -> Sequence[Reduction]:
        """The ways to remove them, the best first; the last one fits nothing."""
        ...

    def __hash__(self) -> int: ...
