"""The chart of the entropies: what it shows, that it can be read, and what it needs."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import fxreduce
from fxreduce.report.chart import entropy_chart
from tests.models import Ladder, points, seeded

ROOT = Path(fxreduce.__file__).parent.parent
MANY = [f"features.{number}.conv.block.activation" for number in range(50)]


def bars(figure: Figure) -> list[Rectangle]:
    """The bars of a figure, from the top."""
    found = [bar for container in figure.axes[0].containers for bar in container.patches]
    return sorted(found, key=lambda bar: figure.axes[0].transData.transform((0, bar.get_y()))[1])[
        ::-1
    ]


def test_plot_shows_the_entropy_of_each_site_in_order_of_execution() -> None:
    analysis = fxreduce.analyze(seeded(Ladder), [points(500, 1)])
    figure = analysis.plot()
    (axes,) = figure.axes
    assert isinstance(figure, Figure)
    assert [text.get_text() for text in axes.get_yticklabels()] == [s.name for s in analysis.sites]
    assert [bar.get_width() for bar in bars(figure)] == [site.entropy for site in analysis.sites]
    assert axes.get_xlabel() == "entropy (bits)"
    assert figure.get_suptitle() == "Entropy of the rectifiers in order of execution (paper rule)"


def test_each_kind_has_a_colour_of_its_own_and_a_name_in_the_legend() -> None:
    kinds = ["relu", "gelu", "relu", "silu"]
    figure = entropy_chart(["a", "b", "c", "d"], kinds, [0.1, 0.2, 0.3, 0.4], "title")
    colours = [to_hex(bar.get_facecolor()) for bar in bars(figure)]
    assert colours[0] == colours[2]
    assert len(set(colours)) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["relu", "gelu", "silu"]


def test_kinds_beyond_the_palette_are_told_apart_by_their_hatch() -> None:
    kinds = [f"kind {number}" for number in range(12)]
    figure = entropy_chart(kinds, kinds, [0.5] * 12, "title")
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars(figure)}) == 12


@pytest.mark.parametrize("count", [1, 5, 50])
def test_no_text_lies_on_another_or_outside_the_figure(count: int) -> None:
    kinds = ["relu", "hardswish"] * count
    entropies = [number / max(count - 1, 1) for number in range(count)]  # up to one bit
    figure = entropy_chart(MANY[:count], kinds[:count], entropies, "Entropy of the rectifiers")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    labels = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(above.y0 > below.y1 for above, below in pairwise(labels))
    whole = figure.bbox
    for text in (*axes.get_yticklabels(), *axes.texts, axes.xaxis.label, *figure.texts):
        box = text.get_window_extent()
        assert whole.x0 <= box.x0, text
        assert box.x1 <= whole.x1, text
        assert whole.y0 <= box.y0, text
        assert box.y1 <= whole.y1, text
    figures = sorted(axes.texts, key=lambda text: -text.get_window_extent().y0)
    assert [text.get_text() for text in figures] == [f"{value:.2f}" for value in entropies]


def test_a_model_without_rectifiers_gives_an_empty_chart() -> None:
    written = io.BytesIO()
    entropy_chart([], [], [], "Entropy of 0 rectifiers").savefig(written, format="png")
    assert written.getvalue().startswith(b"\x89PNG")


def test_plotting_leaves_pyplot_alone() -> None:
    code = (
        "import sys\n"
        "from fxreduce.report.chart import entropy_chart\n"
        "entropy_chart(['a'], ['relu'], [0.5], 'title').savefig(sys.stdout.buffer, format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = fxreduce.analyze(seeded(Ladder), [points(9, 1)])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        fxreduce.UnsupportedError, match=r"needs matplotlib.*pip install 'fxreduce\[plot\]'"
    ):
        analysis.plot()
