"""The one way to edit a graph: every edit has a reason and is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import CAPTURED, SHAPE, module_path


@dataclass(frozen=True)
class Edit:
    """One change of a graph: what was done to which node, and why."""

    action: Literal["created", "replaced", "erased"]
    node: str
    why: str


@dataclass(frozen=True)
class RefusedRewrite:
    """A rewrite that was considered at a place and left undone, with the reason."""

    where: str
    reason: str
    rewrite: str


class Recorder:
    """Edits a copy of a graph module and keeps the record.

    The copy has a graph of its own and shares the modules and parameters, which rewrites replace
    but never write.
    """

    def __init__(self, graph_module: GraphModule, rewrite: str) -> None:
        self.graph_module = share(graph_module)
        self.rewrite = rewrite
        self.edits: list[Edit] = []
        self.refusals: list[RefusedRewrite] = []

    @property
    def nodes(self) -> list[Node]:
        """The nodes as they are now; a list, so that edits do not disturb a loop over it."""
        return list(self.graph_module.graph.nodes)

    def merge(self, nodes: Sequence[Node], given: Node, module: nn.Module, why: str) -> Node:
        """Let one call of `module` on `given` take the place of `nodes`.

        Args:
            nodes: in graph order; the last one's value is replaced, the others feed only it. The
                call stands where the first one stood, so that it reads `given` when that did.
        """
        path = self._free_path(nodes)
        self._set_module(path, module)
        with self.graph_module.graph.inserting_before(nodes[0]):
            merged = self.graph_module.graph.call_module(path, (given,))
        merged.meta = dict(nodes[-1].meta)
        self.edits.append(Edit("created", merged.name, why))
        self.replace(nodes[-1], merged, why)
        for node in reversed(nodes[:-1]):
            self.erase(node, why)
        return merged

    def insert(self, path: str, module: nn.Module, given: Node, before: Node, why: str) -> Node:
        """A call of a new module, of its input's shape, on `given` before a node, which stays.

        The module stands at `path`, or at a path like it where the model has something there.
        """
        path = self._unused(path)
        self._set_module(path, module)
        with self.graph_module.graph.inserting_before(before):
            node = self.graph_module.graph.call_module(path, (given,))
        node.meta.update({SHAPE: given.meta[SHAPE]} if SHAPE in given.meta else {})
        self.edits.append(Edit("created", node.name, why))
        return node

    def replace(self, node: Node, by: Node, why: str) -> None:
        """Let every user of `node` use `by`, and erase `node`."""
        node.replace_all_uses_with(by)
        self.edits.append(Edit("replaced", node.name, why))
        self._erase(node)

    def swap(
        self, first: Node, second: Node, given: Node, shape: tuple[int, ...] | None, why: str
    ) -> None:
        """Let `second`, the only reader of `first`, be computed before it, from `given`.

        Args:
            shape: of `second`'s value from then on, where known; `first`'s is what `second`'s was.
        """
        second.replace_all_uses_with(first)
        second.replace_input_with(first, given)
        first.replace_input_with(given, second)
        first.prepend(second)
        for key in (SHAPE, *CAPTURED):
            first.meta.pop(key, None)
            if key in second.meta:
                first.meta[key] = second.meta.pop(key)
        second.meta.update({} if shape is None else {SHAPE: shape})
        self.edits.extend(Edit("replaced", node.name, why) for node in (first, second))

    def reroute(self, node: Node, by: Node, users: Sequence[Node], why: str) -> None:
        """Let some users of `node` use `by`; `node` stays."""
        if node.replace_all_uses_with(by, delete_user_cb=lambda user: user in users):
            self.edits.append(Edit("replaced", node.name, why))

    def erase(self, node: Node, why: str) -> None:
        """Erase a node without users, and the constants that only it read."""
        self.edits.append(Edit("erased", node.name, why))
        self._erase(node)

    def refuse(self, where: str, reason: str) -> None:
        """Record that the rewrite does not apply somewhere."""
        refusal = RefusedRewrite(where, reason, self.rewrite)
        if refusal not in self.refusals:
            self.refusals.append(refusal)

    def counts(self) -> Counter[str]:
        """How many nodes were created, replaced and erased."""
        return Counter(edit.action for edit in self.edits)

    def finish(self) -> GraphModule:
        """The edited graph module, checked and compiled, without the modules that nothing calls."""
        self.graph_module.graph.lint()
        self.graph_module.delete_all_unused_submodules()
        self.graph_module.recompile()
        return self.graph_module

    def _erase(self, node: Node) -> None:
        inputs = node.all_input_nodes
        self.graph_module.graph.erase_node(node)
        for constant in inputs:
            if constant.op == "get_attr" and not constant.users:
                self.graph_module.graph.erase_node(constant)

    def _free_path(self, nodes: Sequence[Node]) -> str:
        """The path of the first module among `nodes` if nothing else uses it, or one like it."""
        called = [node for node in self.nodes if node.op == "call_module" and node not in nodes]
        constants = [
            node
            for node in self.graph_module.graph.find_nodes(op="get_attr")
            if not (node.users and all(user in nodes for user in node.users))
        ]
        paths = [path for node in nodes if (path := _path(node)) and not _is_inside(path, called)]
        hint = next(iter(paths), "fused")
        path, count = hint, 0
        while any(f"{node.target}.".startswith(f"{path}.") for node in (*called, *constants)):
            count += 1
            path = f"{hint}_{count}"
        return path

    def _unused(self, hint: str) -> str:
        taken = {*dict(self.graph_module.named_modules()), *self.graph_module.state_dict()}
        path, count = hint, 0
        while path in taken:
            count += 1
            path = f"{hint}_{count}"
        return path

    def _set_module(self, path: str, module: nn.Module) -> None:
        *parents, name = path.split(".")
        owner: nn.Module = self.graph_module
        for parent in parents:
            if not isinstance(getattr(owner, parent, None), nn.Module):
                setattr(owner, parent, nn.Module())
            owner = getattr(owner, parent)
        setattr(owner, name, module)


def share(graph_module: GraphModule) -> GraphModule:
    """A graph module with a graph of its own and the same modules and parameters."""
    copy = GraphModule(graph_module, deepcopy(graph_module.graph), type(graph_module).__name__)
    copy.meta = dict(graph_module.meta)
    return copy


def _is_inside(path: str, calls: Sequence[Node]) -> bool:
    """Whether one of the called modules holds the path, and would be changed by a module there."""
    return any(path.startswith(f"{call.target}.") for call in calls)


def _path(node: Node) -> str:
    return str(node.target) if node.op == "call_module" else module_path(node)[0]
