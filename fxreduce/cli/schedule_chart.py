"""The chart of a comparison: accuracy against what each method has reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxreduce.cli.comparison import Comparison, Outcome
from fxreduce.cli.errors import UsageError
from fxreduce.errors import UnsupportedError, missing_extra
from fxreduce.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's palette, which people of every colour vision can tell apart; shapes besides.
_STYLES = {
    "easier": ("#0072B2", "o", "EASIER"),
    "egp": ("#E69F00", "s", "EGP"),
    "nepenthe": ("#009E73", "^", "NEPENTHE"),
    "tlc": ("#CC79A7", "D", "TLC"),
    "layer_folding": ("#D55E00", "v", "Layer Folding"),
}


def check_plot(path: Path) -> None:
    """Refuse a chart that cannot be written, before any long work is done for it.

    Raises:
        UnsupportedError: The suffix is none of those of charts, or matplotlib is not installed.
        UsageError: The folder does not exist.
    """
    if path.suffix not in _SUFFIXES:
        raise UnsupportedError(
            f"--plot {path}: the suffix says what to draw: {', '.join(_SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}; make it first")
    _figure_class()


def save_plot(path: Path, comparison: Comparison) -> str:
    """Draw the chart into a file; returns a sentence about it.

    Raises:
        UsageError: The file cannot be written.
    """
    figure = comparison_chart(comparison)
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error
    return f"wrote the chart to {path}"


def comparison_chart(comparison: Comparison) -> Figure:
    """Test accuracy against removed rectifiers, multiply-adds and speed; one line a method."""
    figure = _figure_class()(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    axes_of = (
        ("rectifiers removed", lambda point: point.removed),
        (
            "multiply-adds after merging (millions)",
            lambda point: None if point.macs is None else point.macs / 1e6,
        ),
        (f"times as fast as the dense network ({comparison.device})", lambda point: point.faster),
    )
    for axes, (label, value) in zip(panels, axes_of, strict=True):
        for outcome in comparison.outcomes:
            _draw(axes, outcome, value)
        axes.set_xlabel(label)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].invert_xaxis()  # so that further to the right is more gained, in all three
    panels[0].set_ylabel("test accuracy (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    beyond = any(not point.counts for each in comparison.outcomes for point in each.points)
    hollow = "; hollow: rounds beyond a method's own limit" if beyond else ""
    figure.suptitle(f"{comparison.title}{hollow}")
    return figure


def _draw(axes: Any, outcome: Outcome, value: Any) -> None:
    colour, marker, name = _STYLES[outcome.method]
    points = [point for point in outcome.points if value(point) is not None]
    spent = points[-1].epochs if points else 0
    places = [value(point) for point in points]
    heights = [100 * point.test for point in points]
    faces = [colour if point.counts else "white" for point in points]
    axes.plot(
        places,
        heights,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.2,
        label=f"{name}, {spent} epochs",
        zorder=2,
    )
    axes.scatter(places, heights, c=faces, marker=marker, edgecolors=colour, s=25, zorder=3)


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "a chart", "plot") from None
    return Figure
