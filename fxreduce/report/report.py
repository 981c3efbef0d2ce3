"""The report of a reduction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch.fx import GraphModule

from fxreduce.errors import UnsupportedError
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.report.table import table

REPORT = "fxreduce.report"  # GraphModule.meta key
SCHEMA = 1


@dataclass(frozen=True)
class SiteRow:
    """One site of the model: its entropy in bits when it was last measured, and its fate."""

    name: str
    kind: str
    removed: bool
    entropy: float | None = None


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
        parameters: where each parameter of the model went: to itself where nothing touched it, to
            the parameters of the operator that it was merged into, or nowhere.
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
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def to_json(self) -> str:
        """The report as JSON; `schema` numbers the layout."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    def __str__(self) -> str:
        parts = [self.summary()]
        if self.sites:
            rows = [
                (
                    row.name,
                    row.kind,
                    "" if row.entropy is None else f"{row.entropy:.4f}",
                    f"removed {self.removed.index(row.name) + 1}" if row.removed else "kept",
                )
                for row in self.sites
            ]
            parts.append(table(("site", "kind", "entropy (bits)", "decision"), rows, left=2))
        if self.decisions:
            parts.append("\n".join(f"- {line}" for line in self.decisions))
        if self.refusals:
            lines = (f"- {each.where} ({each.rewrite}): {each.reason}" for each in self.refusals)
            parts.append("\n".join(("left undone:", *lines)))
        return "\n\n".join(parts)

    def summary(self) -> str:
        """One sentence with the figures that matter."""
        figures = [
            f"{len(self.removed)} of {len(self.sites)} rectifiers removed",
            f"{self.operators_before} → {self.operators_after} affine operators",
        ]
        if self.macs_before is not None and self.macs_after is not None:
            figures.append(f"{self.macs_before:,} → {self.macs_after:,} multiply-adds")
        if self.max_error is not None:
            figures.append(f"merged equals unmerged to {self.max_error:.1e}")
        return ", ".join(figures) + f" (captured by {self.rung})"


def report(graph_module: GraphModule) -> Report:
    """The report of a graph module that fxreduce made.

    Raises:
        UnsupportedError: the module was not made by fxreduce, or was pickled since.
    """
    found = getattr(graph_module, "meta", {}).get(REPORT)
    if not isinstance(found, Report):
        raise UnsupportedError(
            "a report belongs to what fxreduce.apply, fuse or plan.apply returned; "
            f"{type(graph_module).__name__} has none"
        )
    return found
