"""The one way to edit a graph: every edit has a reason and is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, Target, map_arg

from fxreduce.graph.aliases import Aliases, makes_fresh
from fxreduce.graph.nodes import SHAPE, label, module_path
from fxreduce.graph.origins import ORIGINS, origins
from fxreduce.graph.paths import Paths
from fxreduce.graph.share import share
from fxreduce.graph.values import VALUE

_ABSORBED = "fxreduce.absorbed"  # node.meta key: what a merged call has taken the place of
_LENT: ContextVar[GraphModule | None] = ContextVar("fxreduce_lent", default=None)


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
    but never write. It is edited through the recorder alone, which keeps what it knows of the
    graph, so that an edit takes time for what it changes and not for the whole graph.
    """

    def __init__(self, graph_module: GraphModule, rewrite: str) -> None:
        lent = _LENT.get() is graph_module
        if lent:
            _LENT.set(None)
        self.graph_module = graph_module if lent else share(graph_module)
        self.rewrite = rewrite
        self.edits: list[Edit] = []
        self._refusals: dict[RefusedRewrite, None] = {}
        self._aliases: Aliases | None = None
        self._paths: Paths | None = None

    @property
    def refusals(self) -> list[RefusedRewrite]:
        """The refusals, in order, each once."""
        return list(self._refusals)

    @property
    def aliases(self) -> Aliases:
        """What shares memory in the graph as it is now.

        Building it takes a look at every node. It is kept over merges and erased nodes, and may
        then say of two values that they share memory although only an erased one did so with both.
        """
        if self._aliases is None:
            self._aliases = Aliases(self.graph_module)
        return self._aliases

    @property
    def nodes(self) -> list[Node]:
        """The nodes as they are now; a list, so that edits do not disturb a loop over it."""
        return list(self.graph_module.graph.nodes)

    def merge(
        self,
        nodes: Sequence[Node],
        given: Node,
        module: nn.Module,
        why: str,
        taken: Sequence[Node] = (),
    ) -> Node:
        """Let one call of `module` on `given` take the place of `nodes`.

        Args:
            nodes: in graph order; the last one's value is replaced, the others feed only it. The
                call stands where the first one stood, so that it reads `given` when that did.
            taken: further nodes whose weights went into the module's.
        """
        names = origins(self.graph_module, (*nodes, *taken))
        path = self._free_path(nodes)
        self._set(path, module)
        merged = self._new("call_module", path, (given,), {}, nodes[0])
        if not makes_fresh(module):
            self._aliases = None
        if self._aliases is not None:
            self._aliases.add(merged, place_of=nodes[0], memory_of=nodes[-1])
        merged.meta = {**nodes[-1].meta, ORIGINS: names, _ABSORBED: _labels(nodes)}
        self.edits.append(Edit("created", merged.name, why))
        self._replace(nodes[-1], merged, why)
        for node in reversed(nodes[:-1]):
            self.erase(node, why)
        return merged

    def stand_in(
        self,
        nodes: Sequence[Node],
        given: Node,
        module: nn.Module,
        before: Node,
        shape: tuple[int, ...] | None,
        why: str,
    ) -> Node:
        """One call of `module` on `given` before a node, at the path of `nodes`, which stay.

        Args:
            nodes: what the caller will erase, and whose path is therefore free.
            shape: of the call's value, where it is known.
        """
        names = origins(self.graph_module, nodes)
        path = self._free_path(nodes)
        self._set(path, module)
        stand_in = self.create("call_module", path, (given,), {}, before, shape, why)
        stand_in.meta |= {ORIGINS: names, _ABSORBED: _labels(nodes)}
        return stand_in

    def create(
        self,
        op: str,
        target: Target,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        before: Node,
        shape: tuple[int, ...] | None,
        why: str,
    ) -> Node:
        """A call of what the model calls already, or of a function, before a node."""
        self._aliases = None
        node = self._new(op, target, args, kwargs, before)
        node.meta.update({} if shape is None else {SHAPE: shape})
        self.edits.append(Edit("created", node.name, why))
        return node

    def again(
        self,
        node: Node,
        given: Node,
        on: Node,
        before: Node,
        shape: tuple[int, ...] | None,
        why: str,
    ) -> Node:
        """The call of `node` once more, before a node, on another value instead of `given`."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: on if each is given else each)
        new = self.create(node.op, node.target, args, kwargs, before, shape, why)
        new.meta.update({key: node.meta[key] for key in (ORIGINS,) if key in node.meta})
        return new

    def insert(self, path: str, module: nn.Module, given: Node, before: Node, why: str) -> Node:
        """A call of a new module, of its input's shape, on `given` before a node, which stays.

        The module stands at `path`, or at a path like it where the model has something there.
        """
        path = self._unused(path)
        self._set(path, module)
        return self.create("call_module", path, (given,), {}, before, given.meta.get(SHAPE), why)

    def constant(
        self, path: str, value: Tensor, requires_grad: bool, before: Node, why: str
    ) -> Node:
        """A new parameter of that value, read before a node.

        It stands at `path`, or at a path like it where the model has something there.
        """
        if self._paths is None:
            self._paths = Paths(self.graph_module.graph.nodes)
        path = self._unused(path.replace(".", "_") if self._paths.is_called(path) else path)
        self._set(path, nn.Parameter(value, requires_grad))
        return self.create("get_attr", path, (), {}, before, tuple(value.shape), why)

    def substitute(self, node: Node, path: str, module: nn.Module, why: str) -> Node:
        """Call a new module with the arguments of `node` in its place."""
        path = self._unused(path)
        self._set(path, module)
        shape = node.meta.get(SHAPE)
        made = self.create("call_module", path, node.args, node.kwargs, node, shape, why)
        self.replace(node, made, why)
        return made

    def replace(self, node: Node, by: Node, why: str) -> None:
        """Let every user of `node` use `by`, and erase `node`."""
        if self._aliases is not None and not self._aliases.share_memory(node, by):
            self._aliases = None
        self._replace(node, by, why)

    def reroute(self, node: Node, by: Node, users: Sequence[Node], why: str) -> None:
        """Let some users of `node` use `by`; `node` stays."""
        self._aliases = None
        if node.replace_all_uses_with(by, delete_user_cb=lambda user: user in users):
            self.edits.append(Edit("replaced", node.name, why))

    def erase(self, node: Node, why: str) -> None:
        """Erase a node without users, and the constants that only it read."""
        self.edits.append(Edit("erased", node.name, why))
        self._erase(node)

    def refuse(self, where: str, reason: str) -> None:
        """Record that the rewrite does not apply somewhere."""
        self._refusals[RefusedRewrite(where, reason, self.rewrite)] = None

    def counts(self) -> Counter[str]:
        """How many nodes were created, replaced and erased."""
        return Counter(edit.action for edit in self.edits)

    def finish(self) -> GraphModule:
        """The edited graph module, checked and compiled, without the modules that nothing calls."""
        if self.edits:
            self.graph_module.graph.lint()
            self.graph_module.delete_all_unused_submodules()
            self.graph_module.recompile()
        return self.graph_module

    def _new(
        self,
        op: str,
        target: Target,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        before: Node,
    ) -> Node:
        with self.graph_module.graph.inserting_before(before):
            node = self.graph_module.graph.create_node(op, target, args, kwargs)
        if self._paths is not None:
            self._paths.add(node)
        return node

    def _replace(self, node: Node, by: Node, why: str) -> None:
        node.replace_all_uses_with(by)
        if VALUE in node.meta:
            by.meta.setdefault(VALUE, node.meta[VALUE])
        self.edits.append(Edit("replaced", node.name, why))
        self._erase(node)

    def _erase(self, node: Node) -> None:
        constants = [each for each in node.all_input_nodes if each.op == "get_attr"]
        self._erase_one(node)
        for constant in constants:
            if not constant.users:
                self._erase_one(constant)

    def _erase_one(self, node: Node) -> None:
        self.graph_module.graph.erase_node(node)
        if self._paths is not None:
            self._paths.remove(node)
        if self._aliases is not None:
            self._aliases.erase(node)

    def _free_path(self, nodes: Sequence[Node]) -> str:
        """The path of the first module among `nodes` if nothing else uses it, or one like it."""
        if self._paths is None:
            self._paths = Paths(self.graph_module.graph.nodes)
        own = {node for node in nodes if node.op == "call_module"} | _own_constants(nodes)
        for node in own:
            self._paths.remove(node)
        called = self._paths.is_called
        hint = next((path for node in nodes if (path := _path(node)) and not called(path)), "fused")
        path, count = hint, 0
        while self._paths.is_used(path):
            count += 1
            path = f"{hint}_{count}"
        for node in own:
            self._paths.add(node)
        return path

    def _unused(self, hint: str) -> str:
        taken = {*dict(self.graph_module.named_modules()), *self.graph_module.state_dict()}
        path, count = hint, 0
        while path in taken:
            count += 1
            path = f"{hint}_{count}"
        return path

    def _set(self, path: str, value: nn.Module | nn.Parameter) -> None:
        *parents, name = path.split(".")
        owner: nn.Module = self.graph_module
        for parent in parents:
            if not isinstance(getattr(owner, parent, None), nn.Module):
                setattr(owner, parent, nn.Module())
            owner = getattr(owner, parent)
        setattr(owner, name, value)


@contextmanager
def lent(graph_module: GraphModule) -> Iterator[None]:
    """Let the first recorder that is made in here edit this graph module instead of a copy.

    For one that nobody else will read: copying it takes longer than what most passes do.
    """
    token = _LENT.set(graph_module)
    try:
        yield
    finally:
        _LENT.reset(token)


def absorbed(node: Node) -> tuple[str, ...]:
    """The labels of the nodes that merging has put into this one; none where it is as it was."""
    found: tuple[str, ...] = node.meta.get(_ABSORBED, ())
    return found


def _labels(nodes: Sequence[Node]) -> tuple[str, ...]:
    """The labels of nodes that are about to be merged, each once, in order."""
    labels = (each for node in nodes for each in absorbed(node) or (label(node),))
    return tuple(dict.fromkeys(labels))


def _own_constants(nodes: Sequence[Node]) -> set[Node]:
    """The constants that only `nodes` read."""
    constants = {each for node in nodes for each in node.all_input_nodes if each.op == "get_attr"}
    return {each for each in constants if all(user in nodes for user in each.users)}


def _path(node: Node) -> str:
    return str(node.target) if node.op == "call_module" else module_path(node)[0]
