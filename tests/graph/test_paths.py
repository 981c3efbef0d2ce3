"""Which paths are used, as nodes come and go."""

from __future__ import annotations

import pytest
from torch.fx import Graph

from fxreduce.graph.paths import Paths


def paths() -> tuple[Graph, Paths]:
    """A graph that calls a.b twice and c once, and reads d.weight."""
    graph = Graph()
    x = graph.placeholder("a")
    for target in ("a.b", "a.b", "c"):
        x = graph.call_module(target, (x,))
    graph.output(graph.call_method("add", (x, graph.get_attr("d.weight"))))
    return graph, Paths(graph.nodes)


@pytest.mark.parametrize(
    ("path", "used"),
    [("a", True), ("a.b", True), ("a.b.c", False), ("a.c", False), ("d", True), ("add", False)],
)
def test_a_path_is_used_where_something_at_it_or_inside_it_is(path: str, used: bool) -> None:
    assert paths()[1].is_used(path) is used


@pytest.mark.parametrize(
    ("path", "called"), [("a.b", False), ("a.b.c.d", True), ("c.x", True), ("cx", False)]
)
def test_a_path_is_called_where_a_called_module_holds_it(path: str, called: bool) -> None:
    assert paths()[1].is_called(path) is called


def test_what_is_read_but_not_called_is_not_changed_by_a_module_inside() -> None:
    assert not paths()[1].is_called("d.weight.x")


def test_a_path_is_free_once_all_that_use_it_are_removed() -> None:
    graph, seen = paths()
    first, second = (node for node in graph.nodes if node.target == "a.b")
    seen.remove(first)
    assert seen.is_used("a")
    seen.remove(second)
    assert not seen.is_used("a")
    assert not seen.is_called("a.b.c")
    seen.add(second)
    assert seen.is_used("a.b")
