"""The demonstration's result, as a table for a person and as JSON for a program."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from fxreduce.cli.demo import Row, Settings
from fxreduce.report.table import table

SCHEMA = 1


def as_json(rows: list[Row], settings: Settings) -> dict[str, Any]:
    """The rows and what they were made with, ready for `json.dumps`."""
    return {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "torch": torch.__version__,
        "rows": [
            asdict(row) | {"ratio": row.ratio, "report": json.loads(row.report.to_json())}
            for row in rows
        ],
    }


def as_text(rows: list[Row], settings: Settings) -> str:
    """One table, how its figures were taken, and one sentence that sums it up."""
    header = (
        "network",
        "budget",
        "compensate",
        "removed",
        "operators",
        "multiply-adds",
        f"ms/{settings.latency_batch} images",
        "faster",
        "test accuracy",
        "max error",
    )
    return "\n\n".join(
        (table(header, [_cells(row) for row in rows], left=3), _notes(settings), _summary(rows))
    )


def _cells(row: Row) -> tuple[str, ...]:
    report, before, after = row.report, row.before, row.after
    return (
        row.network,
        row.way.label,
        row.way.compensate if row.way.budget else "-",
        f"{len(report.removed)}/{len(report.sites)}",
        f"{report.operators_before} -> {report.operators_after}",
        f"{before.macs / 1e6:.2f} -> {after.macs / 1e6:.2f} M",
        f"{before.seconds * 1e3:.2f} -> {after.seconds * 1e3:.2f}",
        f"{row.ratio:.2f}x",
        f"{before.accuracy:.1%} -> {after.accuracy:.1%}",
        f"{report.max_error:.0e}",
    )


def _notes(settings: Settings) -> str:
    return "\n".join(
        (
            "removed        rectifiers deleted, of all; with none, only exact merging is left",
            "operators      convolutions, linears, batch-norms and other affine operators",
            "multiply-adds  of convolutions and linears for one image; ptflops counts the same",
            f"ms             median of {settings.rounds} forwards, in shuffled turns, one thread",
            "test accuracy  on digits that neither training nor fxreduce has seen; no retraining",
            "max error      largest deviation of the merged from the unmerged graph, relative",
        )
    )


def _summary(rows: list[Row]) -> str:
    found = {(row.network, row.way.label, row.way.compensate): row for row in rows}
    networks = dict.fromkeys(row.network for row in rows)
    fixed = rows[-1].way.label
    gains = []
    for network in networks:
        merged, auto = found[network, "none", "identity"], found[network, "auto", "refit"]
        gains.append(
            f"the {network} network {auto.ratio:.2f} times as fast (merging alone: "
            f"{merged.ratio:.2f}) at {auto.after.accuracy:.1%} test accuracy (before: "
            f"{auto.before.accuracy:.1%})"
        )
    kept = {
        compensate: " and ".join(
            f"{found[network, fixed, compensate].after.accuracy:.1%}" for network in networks
        )
        for compensate in ("identity", "channel", "refit")
    }
    return (
        f"Without retraining, auto makes {' and '.join(gains)}; with {fixed} of the rectifiers "
        f"gone, refit keeps {kept['refit']} where channel keeps {kept['channel']} and identity "
        f"{kept['identity']}."
    )
