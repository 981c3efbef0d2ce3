"""Charts of ratios and of curves, as SVG files that are the same for the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fxreduce.files import write_atomically
from fxreduce.report.chart import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = "osD^v<>"
_BAR = 0.24  # inches
Series = Mapping[str, Sequence[float | None]]


def ratios(labels: Sequence[str], series: Series, along: str, *, mark: float = 1.0) -> Figure:
    """Bars of ratios, a group for each label from the top, and a line where nothing is gained.

    Args:
        labels: of the groups.
        series: by name, a ratio for each group; None leaves a bar out.
        along: what the ratios are.
        mark: where the line is.
    """
    figure = _figure((8, 1.2 + _BAR * len(labels) * (len(series) + 0.8)))
    axes = figure.add_subplot()
    height = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        there = [place for place, value in enumerate(values) if value is not None]
        places = [place + height * (number - (len(series) - 1) / 2) for place in there]
        widths = [value for value in values if value is not None]
        bars = axes.barh(places, widths, height=height * 0.9, color=COLOURS[number], label=name)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color="0.3")
    axes.axvline(mark, color="0.2", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.set_xlabel(along)
    axes.tick_params(axis="y", length=0)
    _plain(axes, "x")
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def curves(
    panels: Mapping[tuple[str, str], Mapping[str, Sequence[tuple[float, float]]]],
    *,
    columns: int = 1,
    logarithmic: bool = False,
    lines: Mapping[tuple[str, str], float] | None = None,
    joined: bool = True,
    dashed: str | None = None,
) -> Figure:
    """Points of several series in panels side by side, one legend for all.

    Args:
        panels: by the names of their axes, along and up, the points of each series.
        columns: panels in a row.
        logarithmic: both axes.
        lines: a height that a panel marks.
        joined: by lines.
        dashed: the series that the others are held against, a line alone.
    """
    rows = -(-len(panels) // columns)
    figure = _figure((5 * columns if columns > 1 else 8, 3.2 * rows + 0.8))
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    handles = {}
    for number, (key, series) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for name, points in series.items():
            place = names.index(name)
            (handles[name],) = axes.plot(
                *zip(*sorted(points), strict=True),
                marker="" if name == dashed else MARKS[place % len(MARKS)],
                color="0.3" if name == dashed else COLOURS[place % len(COLOURS)],
                linestyle="--" if name == dashed else "-" if joined else "",
                alpha=0.85,
            )
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        if lines and key in lines:
            axes.axhline(lines[key], color="0.4", linestyle=":")
        axes.set_xlabel(key[0])
        axes.set_ylabel(key[1])
        _plain(axes, "both")
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure; as SVG without date and random names, and with letters as letters."""
    import matplotlib

    vector = path.suffix == ".svg"
    with matplotlib.rc_context({"svg.hashsalt": "fxreduce", "svg.fonttype": "none"}):
        options = {"metadata": {"Date": None, "Creator": None}} if vector else {}
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, **options))


def _figure(inches: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout="constrained")


def _plain(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
