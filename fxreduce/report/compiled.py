"""The report of a compiled model: what was done with each of its graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from fxreduce.report.report import Report


@dataclass(frozen=True)
class CompiledReport(Report):
    """What was done with the graphs of torch.compile, all of them together.

    Attributes:
        graphs: the report of each graph, with its drawings. A graph break makes two, and so do
            other sizes of inputs that torch.compile compiles for anew.
        parameters: of the model, where each went; what a graph has of a merged operator are its
            folded weights, which have the names here that `fxreduce.fuse` gives them.
    """

    graphs: tuple[Report, ...] = ()

    @property
    def parts(self) -> tuple[Report, ...]:
        """The reports of the graphs."""
        return self.graphs

    @classmethod
    def of(cls, graphs: Sequence[Report]) -> CompiledReport:
        """The reports of several graphs as one."""
        return cls(
            rung=graphs[0].rung,
            sites=tuple(chain.from_iterable(each.sites for each in graphs)),
            removed=tuple(chain.from_iterable(each.removed for each in graphs)),
            refusals=tuple(chain.from_iterable(each.refusals for each in graphs)),
            decisions=tuple(chain.from_iterable(each.decisions for each in graphs)),
            operators_before=sum(each.operators_before for each in graphs),
            operators_after=sum(each.operators_after for each in graphs),
            macs_before=_sum(each.macs_before for each in graphs),
            macs_after=_sum(each.macs_after for each in graphs),
            max_error=None,
            trials=tuple(chain.from_iterable(each.trials for each in graphs)),
            parameters=_joined(graphs),
            graphs=tuple(graphs),
        )

    def _content(self) -> dict[str, Any]:
        whole = replace(self, graphs=())
        parts = [each._content() for each in self.graphs]
        return {**Report._content(whole), "merged": dict(self.merged), "graphs": parts}

    def __str__(self) -> str:
        if len(self.graphs) == 1:
            return str(self.graphs[0])
        parts = [f"graph {number}: {each}" for number, each in enumerate(self.graphs, 1)]
        return "\n\n".join([f"{len(self.graphs)} graphs: {self.summary()}", *parts])


def _joined(graphs: Iterable[Report]) -> dict[str, tuple[str, ...]]:
    """Where the parameters went in any of the graphs."""
    found: dict[str, dict[str, None]] = {}
    for name, went in chain.from_iterable(each.parameters.items() for each in graphs):
        found.setdefault(name, {}).update(dict.fromkeys(went))
    return {name: tuple(went) for name, went in found.items()}


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(each for each in known if each is not None)
