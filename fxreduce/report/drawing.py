"""Drawing graphs as SVG; colours and fonts are those of the page's style sheet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

from fxreduce.report.graph_view import GraphView, NodeView
from fxreduce.report.layout import NODE_HEIGHT, NODE_WIDTH, layout

# What happened to a node, with the sign that says so without colour.
SIGNS = {"kept": "", "removed": "✕", "merged": "⊕", "dropped": "·"}
_CHARACTERS = 34  # that fit into a node


def drawing(view: GraphView, fates: Sequence[str], title: str) -> str:
    """The graph as an SVG element.

    Args:
        view: the graph.
        fates: of each of its nodes, one of `SIGNS`.
        title: for readers who do not see it.
    """
    placed = layout([node.inputs for node in view.nodes])
    edges = " ".join(_path(points) for points in placed.edges.values())
    nodes = "".join(
        _node(number, node, fate, *position)
        for number, (node, fate, position) in enumerate(
            zip(view.nodes, fates, placed.nodes, strict=True)
        )
    )
    size = f'width="{placed.width:g}" height="{placed.height:g}"'
    return (
        f'<svg {size} viewBox="0 0 {placed.width:g} {placed.height:g}" role="img" '
        f'aria-label="{escape(title)}"><path class="edge" d="{edges}"/>{nodes}</svg>'
    )


def fates(view: GraphView, removed: Collection[str], after: GraphView) -> list[str]:
    """What happened to the nodes of a graph: removed, merged into others, dropped or kept.

    Args:
        view: the graph before.
        removed: names of removed sites.
        after: the graph after.
    """
    merged = {origin for node in after.nodes for origin in node.origins}
    left = {node.label for node in after.nodes}
    return [_fate(node, removed, merged, left) for node in view.nodes]


def _fate(
    node: NodeView, removed: Collection[str], merged: Collection[str], left: Collection[str]
) -> str:
    if node.site is not None:
        return "removed" if node.site in removed else "kept"
    if node.label in merged:
        return "merged"
    return "kept" if node.label in left or node.kind in ("input", "output") else "dropped"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _node(number: int, node: NodeView, fate: str, x: float, y: float) -> str:
    shape = "" if node.shape is None else f" → {' × '.join(map(str, node.shape))}"
    told = f"{node.label}: {node.text}{shape}" + (f", {fate}" if fate != "kept" else "")
    if node.origins:
        told += f" from {', '.join(node.origins)}"
    sign = f"{SIGNS[fate]} " if SIGNS[fate] else ""
    made = f' data-from="{escape(" ".join(node.origins))}"' if node.origins else ""
    radius = NODE_HEIGHT / 2 if node.kind in ("rectifier", "input", "output") else 4
    return (
        f'<g class="node {node.kind} {fate}" data-label="{escape(node.label)}"{made} '
        f'data-node="{number}" transform="translate({x:g} {y:g})">'
        f"<title>{escape(told)}</title>"
        f'<rect width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="{radius:g}"/>'
        f'<text x="{NODE_WIDTH // 2}" y="14">{escape(sign + _short(node.label))}</text>'
        f'<text class="what" x="{NODE_WIDTH // 2}" y="27">{escape(_cut(node.text))}</text></g>'
    )


def _short(text: str) -> str:
    """The text, its beginning left out where it is too long: paths differ at their ends."""
    return text if len(text) <= _CHARACTERS else f"…{text[1 - _CHARACTERS :]}"


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS + 6 else f"{text[: _CHARACTERS + 5]}…"
