"""A pass: two equal transpositions in a row are none."""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from fxreduce.registry import PassResult, Recorder, argument, operation, register_pass


@dataclass(frozen=True)
class DropDoubleTranspose:
    """x.transpose(a, b).transpose(a, b) = x, so that what stood around them can merge.

    Before: y = f(x).transpose(1, 2).transpose(1, 2); z = g(y)        After: z = g(f(x))
    """

    name: ClassVar[str] = "drop_double_transpose"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        for node in recorder.nodes:
            first = _given(node)
            if first is None or _given(first) is None or _axes(first) != _axes(node):
                continue
            if len(first.users) > 1:
                recorder.refuse(node.name, f"{first.name} has {len(first.users)} readers")
                continue
            given = _given(first)
            assert given is not None
            recorder.replace(node, given, "two equal transpositions are none")
            recorder.erase(first, "nothing reads it any more")
        return PassResult.of(recorder)


def _given(node: Node) -> Node | None:
    """What the node transposes, if it does."""
    given = argument(node, 0, "input")
    return given if operation(node) == "transpose" and isinstance(given, Node) else None


def _axes(node: Node) -> set[object]:
    return {argument(node, 1, "dim0"), argument(node, 2, "dim1")}


def register() -> None:
    """Let it take its turn with the merging passes."""
    register_pass(DropDoubleTranspose())
