"""Which paths of modules and tensors a graph uses, kept while it is edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from torch.fx import Node

_OWNERS = ("call_module", "get_attr")


class Paths:
    """The paths that calls and constants of a graph use.

    Each question and each update takes time for the length of a path, not of the graph.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._calls: Counter[str] = Counter()
        self._used: Counter[str] = Counter()  # every used path and all that hold it
        for node in nodes:
            self.add(node)

    def add(self, node: Node) -> None:
        """Note what a node uses."""
        self._count(node, 1)

    def remove(self, node: Node) -> None:
        """Forget what a node used."""
        self._count(node, -1)

    def is_used(self, path: str) -> bool:
        """Whether something at the path, or inside it, is used."""
        return self._used[path] > 0

    def is_called(self, path: str) -> bool:
        """Whether a called module holds the path, and would be changed by a module there."""
        return any(self._calls[owner] > 0 for owner in _owners(path))

    def _count(self, node: Node, by: int) -> None:
        if node.op not in _OWNERS:
            return
        path = str(node.target)
        if node.op == "call_module":
            self._calls[path] += by
        for each in (path, *_owners(path)):
            self._used[each] += by


def _owners(path: str) -> Iterator[str]:
    """The paths that hold a path: "a.b" and "a" for "a.b.c"."""
    while (dot := path.rfind(".")) > 0:
        path = path[:dot]
        yield path
