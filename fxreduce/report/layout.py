"""Where the nodes and edges of a graph stand when it is drawn from top to bottom.

Layered, as Sugiyama et al. (1981) draw graphs, without crossing minimisation: networks are chains
with short branches and skips. A node stands one row below its lowest input; one without inputs, one
row above its first reader. An edge that passes rows runs in a lane of its own to the right of what
it passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NODE_WIDTH, NODE_HEIGHT = 236, 34
_ROW, _COLUMN, _LANE = 52, 256, 9
_MARGIN = 12


@dataclass(frozen=True)
class Layout:
    """Positions in pixels.

    Attributes:
        nodes: the left upper corner of each node.
        edges: for each edge (from, to) its points.
        width, height: of the drawing.
    """

    nodes: Sequence[tuple[float, float]]
    edges: Mapping[tuple[int, int], Sequence[tuple[float, float]]]
    width: float
    height: float


def layout(inputs: Sequence[Sequence[int]]) -> Layout:
    """Place the nodes of a graph.

    Args:
        inputs: for each node, in an order of execution, the places of its inputs.
    """
    rows = _rows(inputs)
    columns = _columns(inputs, rows)
    nodes = [
        (_MARGIN + column * _COLUMN, _MARGIN + row * _ROW)
        for row, column in zip(rows, columns, strict=True)
    ]
    edges, right = _edges(inputs, rows, columns, nodes)
    return Layout(
        nodes, edges, right + _MARGIN, 2 * _MARGIN + max(rows, default=0) * _ROW + NODE_HEIGHT
    )


def _rows(inputs: Sequence[Sequence[int]]) -> list[int]:
    """The row of each node: one below its lowest input, or one above its first reader."""
    rows: list[int] = []
    for given in inputs:
        rows.append(1 + max((rows[each] for each in given), default=-1))
    for node in [each for each, given in enumerate(inputs) if not given]:
        readers = [row for row, read in zip(rows, inputs, strict=True) if node in read]
        rows[node] = min(readers, default=1) - 1
    return rows


def _columns(inputs: Sequence[Sequence[int]], rows: Sequence[int]) -> list[int]:
    """A column for each node: its first input's, or the next one that is free in its row."""
    taken: dict[int, set[int]] = defaultdict(set)
    columns: list[int] = []
    for given, row in zip(inputs, rows, strict=True):
        column = min((columns[each] for each in given), default=0)
        while column in taken[row]:
            column += 1
        taken[row].add(column)
        columns.append(column)
    return columns


def _edges(
    inputs: Sequence[Sequence[int]],
    rows: Sequence[int],
    columns: Sequence[int],
    nodes: Sequence[tuple[float, float]],
) -> tuple[dict[tuple[int, int], list[tuple[float, float]]], float]:
    """The points of every edge, and how far the drawing reaches to the right."""
    widest: dict[int, int] = defaultdict(int)
    for row, column in zip(rows, columns, strict=True):
        widest[row] = max(widest[row], column)
    occupied = set(zip(rows, columns, strict=True))
    lanes: list[int] = []  # for each lane, the row up to which it is taken
    edges: dict[tuple[int, int], list[tuple[float, float]]] = {}
    right = max((x for x, _ in nodes), default=0) + NODE_WIDTH
    pairs = [(source, target) for target, given in enumerate(inputs) for source in given]
    for source, target in sorted(pairs, key=lambda pair: rows[pair[0]]):
        (x0, y0), (x1, y1) = nodes[source], nodes[target]
        passed = range(rows[source] + 1, rows[target])
        start, end = (x0 + NODE_WIDTH / 2, y0 + NODE_HEIGHT), (x1 + NODE_WIDTH / 2, y1)
        if not any((row, columns[source]) in occupied for row in passed):
            bend = y1 - (_ROW - NODE_HEIGHT) / 2
            edges[source, target] = [start, (start[0], bend), (end[0], bend), end]
            continue
        lane = next((i for i, until in enumerate(lanes) if until <= rows[source]), len(lanes))
        lanes[lane : lane + 1] = [rows[target]]
        column = max(widest[row] for row in range(rows[source], rows[target] + 1))
        x = _MARGIN + column * _COLUMN + NODE_WIDTH + (lane + 1) * _LANE
        right = max(right, x)
        side = NODE_HEIGHT / 2
        edges[source, target] = [
            (x0 + NODE_WIDTH, y0 + side),
            (x, y0 + side),
            (x, y1 + side),
            (x1 + NODE_WIDTH, y1 + side),
        ]
    return edges, right
