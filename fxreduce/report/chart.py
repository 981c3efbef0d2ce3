"""The chart of the entropies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxreduce.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people of every colour vision can tell apart. A kind beyond its end
# begins anew with the next hatch.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_HATCHES = ("", "///", "...", "xxx")
_INCHES_PER_SITE = 0.22


def entropy_chart(
    names: Sequence[str], kinds: Sequence[str], entropies: Sequence[float], title: str
) -> Figure:
    """A bar for each site, in the given order from the top, coloured by the rectifier's kind.

    Args:
        names, kinds, entropies: of the sites; entropies in bits, from 0 to 1.
        title: above the bars.

    Returns:
        A figure that is no part of pyplot's state and opens no window.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "a chart", "plot") from None
    figure = Figure(figsize=(8, 1.3 + _INCHES_PER_SITE * max(len(names), 3)), layout="constrained")
    axes = figure.add_subplot()
    for number, kind in enumerate(dict.fromkeys(kinds)):
        places = [place for place, each in enumerate(kinds) if each == kind]
        bars = axes.barh(
            places,
            [entropies[place] for place in places],
            height=0.7,
            color=COLOURS[number % len(COLOURS)],
            hatch=_HATCHES[number // len(COLOURS) % len(_HATCHES)],
            edgecolor="white",
            linewidth=0,
            label=kind,
        )
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7, color="0.3")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first site at the top
    axes.set_xlim(0, 1.06)  # room for the figure beside a bar of one bit
    axes.set_xlabel("entropy (bits)")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    if kinds:
        figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure
