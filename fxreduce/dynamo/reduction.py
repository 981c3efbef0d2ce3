"""What removes rectifiers from a graph of torch.compile, whatever decides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.fx import GraphModule

from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.passes.base import Pass, Pipeline
from fxreduce.report.report import Report


@dataclass(frozen=True)
class Reduction:
    """A way to remove rectifiers.

    Attributes:
        removal: the passes that do, before merging.
        fit: passes behind merging; where one of them refuses anything, another way is taken.
        refusals: what is left undone, and why.
    """

    removal: Pipeline = ()
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

    def explain(self, report: Report) -> Report:
        """The report of a reduced graph with what was decided, and why."""
        ...

    def __hash__(self) -> int: ...


class Profile(Protocol):
    """Decides from what a graph was called with.

    Attributes:
        calls: how many calls are observed before.
    """

    @property
    def calls(self) -> int: ...

    def __call__(self, graph_module: GraphModule, calls: Sequence[tuple[Any, ...]]) -> Removal:
        """What to remove from a graph whose weights are attributes; it stays as it is.

        Args:
            calls: what it was called with: the values of its placeholders.

        Raises:
            FxReduceError: nothing can be decided, and why.
        """
        ...

    def __hash__(self) -> int: ...
