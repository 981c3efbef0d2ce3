"""A report as one HTML page that needs nothing else: no script, style or image from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING

from fxreduce.report.drawing import drawing, fates
from fxreduce.report.frontier import frontier

if TYPE_CHECKING:
    from fxreduce.report.report import Report, SiteRow

# The browser is told to load nothing, so that the page cannot come to need something.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_KEY = (
    '<ul class="key"><li><i class="swatch removed">✕</i> removed<li><i class="swatch merged">⊕</i> '
    'merged<li><i class="swatch dropped">·</i> dropped, as it did nothing<li>'
    '<i class="swatch kept"></i> kept</ul>'
)


def page(report: Report) -> str:
    """The page; see `Report.to_html`."""
    sections = (
        ("Sites", _sites(report), bool(report.sites)),
        ("Frontier of the run", _frontier(report), bool(report.trials)),
        *_parts(report),
        ("Merged operators", _merged(report), bool(report.merged)),
        ("Left undone", _refusals(report), bool(report.refusals)),
        ("Decisions", _list(report.decisions), bool(report.decisions)),
    )
    shown = [(title, content) for title, content, wanted in sections if wanted]
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in shown)
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{content}</section>'
        for title, content in shown
    )
    data = report.to_json().replace("<", "\\u003c")  # or a name could end the script
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fxreduce report</title><style>{_asset('graph.css')}{_asset('page.css')}</style>"
        "</head><body><header>"
        f'<h1>fxreduce report</h1><p class="summary">{escape(report.summary())}</p>{_cards(report)}'
        f'<nav aria-label="Sections">{links}</nav></header><main>{body}</main>'
        f'<script type="application/json" id="report">{data}</script>'
        f"<script>{_asset('page.js')}</script></body></html>"
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


@cache
def _asset(name: str) -> str:
    return files("fxreduce.report").joinpath(name).read_text(encoding="utf-8")


def _cards(report: Report) -> str:
    """The figures that matter, large."""
    cards = [
        _card("rectifiers removed", str(len(report.removed)), f"of {len(report.sites)}"),
        _change("affine operators", report.operators_before, report.operators_after),
    ]
    if report.macs_before is not None and report.macs_after is not None:
        cards.append(_change("multiply-adds", report.macs_before, report.macs_after))
    if (latency := report.latency) is not None:
        times = f"{latency.before * 1e3:.3g} → {latency.after * 1e3:.3g} ms, {latency.setting}"
        cards.append(_card("times as fast", f"{latency.before / latency.after:.2f}×", times))
    if report.agreement is not None:
        cards.append(_card("same prediction", f"{report.agreement:.1%}", "as the original"))
    if report.max_error is not None:
        cards.append(_card("merging error", f"{report.max_error:.1e}", "of the largest output"))
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _change(name: str, before: int, after: int) -> str:
    share = f", {after / before - 1:+.1%}" if before else ""
    return _card(name, f"{after:,}", f"from {before:,}{share}")


def _card(name: str, figure: str, note: str) -> str:
    return (
        f"<div><dt>{escape(name)}</dt><dd><strong>{escape(figure)}</strong> "
        f"<span>{escape(note)}</span></dd></div>"
    )


def _sites(report: Report) -> str:
    ranked = any(row.importance not in (None, row.entropy) for row in report.sites)
    places = {name: number for number, name in enumerate(report.removed, 1)}
    rows = [_site(row, places.get(row.name), ranked) for row in report.sites]
    header = ["site", "kind", "entropy (bits)", *(["importance"] if ranked else []), "decision"]
    return _table(header, rows, "Sites in order of execution")


def _site(row: SiteRow, place: int | None, ranked: bool) -> list[str]:
    entropy = "" if row.entropy is None else f"{row.entropy:.4f}"
    bar = f'<span class="bar"><i style="width:{100 * (row.entropy or 0):.1f}%"></i></span>'
    importance = "" if row.importance is None else f"{row.importance:.4g}"
    decision = "kept" if place is None else f'<b class="removed">✕ removed {place}</b>'
    return [
        f"<th scope='row'><code>{escape(row.name)}</code>",
        f"<td>{escape(row.kind)}",
        f'<td class="number">{entropy} {bar if entropy else ""}',
        *([f'<td class="number">{importance}'] if ranked else []),
        f"<td>{decision}",
    ]


def _frontier(report: Report) -> str:
    charts = "".join(
        frontier(list(trials))
        for _, trials in groupby(
            sorted(report.trials, key=lambda trial: trial.measure), lambda trial: trial.measure
        )
    )
    return f'<p class="note">● accepted, ✕ refused by the budget</p><div class="row">{charts}</div>'


def _parts(report: Report) -> Iterator[tuple[str, str, bool]]:
    """A section for each graph; those of a compiled model are several, with a figure each."""
    drawn = [each for each in report.parts if each.graph_before.nodes]
    for number, each in enumerate(drawn, 1):
        if len(drawn) == 1:
            yield "Graph", _graphs(each), True
        else:
            told = f'<p class="note">{escape(each.summary())}</p>'
            yield f"Graph {number}", told + _graphs(each), True


def _graphs(report: Report) -> str:
    before, after = report.graph_before, report.graph_after
    what = fates(before, report.removed, after)
    made = ["merged" if node.origins else "kept" for node in after.nodes]
    views = "".join(
        f'<div class="graph"><h3>{name} <span>{len(view.nodes)} nodes</span></h3>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Graph {name.lower()}">'
        f"{drawing(view, fate, f'The graph {name.lower()}')}</div></div>"
        for name, view, fate in (("Before", before, what), ("After", after, made))
    )
    tools = "".join(
        f'<button type="button" data-zoom="{action}" title="{told}">{sign}</button>'
        for action, sign, told in (
            ("out", "−", "smaller (key −)"),
            ("in", "+", "larger (key +)"),
            ("one", "1:1", "original size (key 1)"),
            ("fit", "fit", "the whole graph (key 0)"),
            ("next", "next ⊕", "the next merged operator (key n)"),
        )
    )
    return (
        f'{_KEY}<div class="tools" role="toolbar" aria-label="Graphs">{tools}'
        '<output aria-live="polite"></output></div>'
        f'<div class="graphs">{views}</div><p class="note">Choose a merged operator to see what it '
        "was before. Keys, in a graph: + − zoom, 1 original size, 0 all of it, n and p the next "
        "and the previous merged operator.</p>"
    )


def _merged(report: Report) -> str:
    rows = [
        [
            f"<th scope='row'><code>{escape(node.label)}</code>",
            f"<td>{escape(node.text)}",
            f"<td>{_codes(node.origins)}",
        ]
        for part in report.parts
        for node in part.graph_after.nodes
        if node.origins
    ]
    return _table(["operator", "is now", "in the place of"], rows, "Merged operators")


def _refusals(report: Report) -> str:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in report.refusals:
        places[each.reason, each.rewrite].append(each.where)
    rows = [
        [f"<td>{escape(reason)}", f"<td><code>{escape(rewrite)}</code>", f"<td>{_codes(where)}"]
        for (reason, rewrite), where in places.items()
    ]
    return _table(["reason", "pass", "where"], rows, "Rewrites left undone")


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"<code>{escape(name)}</code>" for name in names)


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}' for line in lines)}</ul>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    head = "".join(f'<th scope="col">{each}' for each in header)
    body = "".join(f"<tr>{''.join(row)}" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<thead><tr>{head}<tbody>{body}</table></div>"
    )
