"""The report of a reduction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.report.graph_view import NOTHING, GraphView
from fxreduce.report.page import page
from fxreduce.report.table import table
from fxreduce.report.trial import Trial

REPORT = "fxreduce.report"  # GraphModule.meta key
SCHEMA = 1


@dataclass(frozen=True)
class SiteRow:
    """One site of the model: what was last measured of it, and its fate.

    Attributes:
        name, kind: the site's name and its rectifier's kind.
        removed: whether it is gone.
        entropy: in bits; None where nothing was measured.
        importance: what it was ranked by; None where it was not ranked.
    """

    name: str
    kind: str
    removed: bool
    entropy: float | None = None
    importance: float | None = None


@dataclass(frozen=True)
class Latency:
    """How long one forward takes, in seconds, of the original and of the reduced model.

    Attributes:
        before, after: in seconds.
        setting: on what they were measured, in words.
    """

    before: float
    after: float
    setting: str


@dataclass(frozen=True)
class Report:
    """What was done to a model, what was not and why, and what it costs before and after.

    Attributes:
        rung: how the model was captured.
        sites: every site of the model, in order of execution.
        removed: the removed sites, in order of removal.
        refusals: rewrites left undone, each with `where` and `reason`.
        decisions: what was decided, and why, in order.
        operators_before, operators_after: affine operators (convolution, Linear, scale-shift).
        macs_before, macs_after: their multiply-adds for a batch of one; None where no example
            inputs told the shapes.
        max_error: the largest deviation of the merged from the unmerged graph, relative to the
            largest output; None where it was not verified.
        trials: what the budget measured of the models that were tried.
        graph_before, graph_after: the graphs as they are drawn.
        latency: where somebody measured it and put it in with `dataclasses.replace`.
        agreement: how often predictions are the original's on data that planning has not seen,
            from 0 to 1; put in likewise.
        parameters: where each parameter of the model, and of the maps that took the place of
            rectifiers, went: to itself where nothing touched it, to the parameters of the operator
            that it was merged into, or nowhere.
    """

    rung: str
    sites: tuple[SiteRow, ...]
    removed: tuple[str, ...]
    refusals: tuple[RefusedRewrite, ...]
    decisions: tuple[str, ...]
    operators_before: int
    operators_after: int
    macs_before: int | None
    macs_after: int | None
    max_error: float | None
    trials: tuple[Trial, ...] = ()
    graph_before: GraphView = NOTHING
    graph_after: GraphView = NOTHING
    latency: Latency | None = None
    agreement: float | None = None
    # Not hashed, as a dictionary cannot be; those that are equal in all else are compared by it.
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, hash=False)

    @property
    def parts(self) -> tuple[Report, ...]:
        """The reports of the graphs: here of one, this very one."""
        return (self,)

    @property
    def merged(self) -> Mapping[str, tuple[str, ...]]:
        """The operators that merging made, by name, each with the names of what is merged in it."""
        nodes = (node for part in self.parts for node in part.graph_after.nodes)
        return {node.label: node.origins for node in nodes if node.origins}

    def to_json(self) -> str:
        """The report as JSON, without the graphs; `schema` numbers the layout.

        The page "JSON output" of the documentation describes it. Fields may be added under one
        number; a field that changes or goes raises it.
        """
        return json.dumps({"schema": SCHEMA, **self._content()}, indent=2)

    def _content(self) -> dict[str, Any]:
        content = asdict(undrawn(self))
        del content["graph_before"], content["graph_after"]
        return {**content, "merged": dict(self.merged)}

    def to_html(self) -> str:
        """The report as one HTML page that needs nothing else, with charts and both graphs.

        Write it with `Path(...).write_text(report.to_html(), encoding="utf-8")`.
        """
        return page(self)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        return (
            f'<iframe srcdoc="{escape(self.to_html())}" sandbox="allow-scripts" '
            'title="fxreduce report" style="width:100%;height:40rem;border:0"></iframe>'
        )

    def __str__(self) -> str:
        parts = [self.summary()]
        if self.sites:
            ranked = any(row.importance not in (None, row.entropy) for row in self.sites)
            header = ("site", "kind", "entropy (bits)", *(["importance"] if ranked else []))
            rows = [(*self._measures(row, ranked), self._fate(row)) for row in self.sites]
            parts.append(table((*header, "decision"), rows, left=2))
        if self.decisions:
            parts.append("\n".join(f"- {line}" for line in self.decisions))
        if self.refusals:
            lines = (f"- {each.where} ({each.rewrite}): {each.reason}" for each in self.refusals)
            parts.append("\n".join(("left undone:", *lines)))
        return "\n\n".join(parts)

    def _measures(self, row: SiteRow, ranked: bool) -> tuple[str, ...]:
        entropy = "" if row.entropy is None else f"{row.entropy:.4f}"
        importance = "" if row.importance is None else f"{row.importance:.4g}"
        return (row.name, row.kind, entropy, *([importance] if ranked else []))

    def _fate(self, row: SiteRow) -> str:
        return f"removed {self.removed.index(row.name) + 1}" if row.removed else "kept"

    def summary(self) -> str:
        """One sentence with the figures that matter."""
        figures = [
            f"{len(self.removed)} of {len(self.sites)} rectifiers removed",
            f"{self.operators_before} → {self.operators_after} affine operators",
        ]
        if self.macs_before is not None and self.macs_after is not None:
            change = f" ({self.macs_after / self.macs_before - 1:+.1%})" if self.macs_before else ""
            figures.append(f"{self.macs_before:,} → {self.macs_after:,} multiply-adds{change}")
        if self.max_error is not None:
            figures.append(f"merged equals unmerged to {self.max_error:.1e}")
        return ", ".join(figures) + f" (captured by {self.rung})"


def undrawn(report: Report) -> Report:
    """The report without what is drawn of the graphs."""
    return replace(report, graph_before=NOTHING, graph_after=NOTHING)


def report_of(graph_module: object) -> Report | None:
    """The report that a graph module carries."""
    found = getattr(graph_module, "meta", {}).get(REPORT)
    return found if isinstance(found, Report) else None
