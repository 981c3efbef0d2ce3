"""A graph as JSON and back; names from a file are checked, as graphs become Python source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxreduce.errors import UnsupportedError, first_line
from fxreduce.graph.nodes import is_guards
from fxreduce.graph.rectifiers import SITE
from fxreduce.saving.arguments import decode, encode
from fxreduce.saving.functions import Function, function_of, methods, name_of

_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)


def saved_nodes(graph_module: GraphModule) -> list[Node]:
    """The nodes that are saved: all but constants that nothing reads, and torch.export's guards.

    The guards only say in other words that an input does not fit.
    """

    def is_left_out(node: Node) -> bool:
        return not node.users and (node.op == "get_attr" or is_guards(graph_module, node))

    return [node for node in graph_module.graph.nodes if not is_left_out(node)]


def graph_to_json(graph_module: GraphModule) -> dict[str, Any]:
    """The nodes of a graph module, and how its inputs and outputs are packed.

    Raises:
        UnsupportedError: it holds something that is not written; the node is named.
    """
    nodes = [_node_to_json(node) for node in saved_nodes(graph_module)]
    return {"nodes": nodes, "packing": _packing(graph_module.graph)}


def graph_from_json(content: Mapping[str, Any], library: Mapping[str, Function]) -> Graph:
    """The graph that `graph_to_json` wrote.

    Args:
        content: its JSON.
        library: functions by name that it may call besides torch's own.

    Raises:
        UnsupportedError: it calls what a saved graph may not call.
        KeyError, TypeError, ValueError: it is damaged.
    """
    graph = Graph()
    nodes: dict[str, Node] = {}
    for each in content["nodes"]:
        op, target = each["op"], _target(each["op"], each["target"], library)
        args, kwargs = decode(each["args"], nodes), decode(each["kwargs"], nodes)
        if target is getattr:
            _identifier(args[1])
        for name in kwargs:
            _identifier(name)
        node = graph.create_node(op, target, args, kwargs, name=_identifier(each["name"]))
        if "site" in each:
            node.meta[SITE] = each["site"]
        nodes[each["name"]] = node
    if (packing := content["packing"]) is not None:
        names = [_identifier(name) for name in packing["names"]]
        specs: list[Any] = [s and pytree.treespec_loads(s) for s in packing["specs"]]
        graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, *specs)))
    return graph


def _node_to_json(node: Node) -> dict[str, Any]:
    target = node.target
    if node.op == "call_function":
        target = name_of(cast(Function, target))
    try:
        content = {
            "name": node.name,
            "op": node.op,
            "target": target,
            "args": encode(tuple(node.args)),
            "kwargs": encode(dict(node.kwargs)),
        }
    except UnsupportedError as error:
        raise UnsupportedError(f"{node.name} cannot be saved: {error}") from None
    return content | ({"site": node.meta[SITE]} if SITE in node.meta else {})


def _packing(graph: Graph) -> dict[str, Any] | None:
    codegen = graph._codegen
    if type(codegen) is CodeGen:
        return None
    if type(codegen) is not _PyTreeCodeGen:
        raise UnsupportedError(
            f"a graph whose code is made by {type(codegen).__name__} cannot be saved; export it "
            "with torch.export"
        )
    info = codegen.pytree_info
    try:
        specs = [
            None if spec is None else pytree.treespec_dumps(spec)
            for spec in (info.in_spec, info.out_spec)
        ]
    except NotImplementedError as error:  # a class that torch has no name for
        raise UnsupportedError(
            f"inputs and outputs are saved as tensors in tuples, lists and dictionaries; "
            f"{first_line(error)}"
        ) from error
    return {"names": info.orig_args, "specs": specs}


def _target(op: str, name: str, library: Mapping[str, Function]) -> Any:
    if op == "call_function":
        return function_of(name, library)
    if op == "call_method":
        if name not in methods():
            raise UnsupportedError(f"a saved graph calls arithmetic methods alone; seen: {name!r}")
        return name
    if op == "placeholder":
        # A model may take *args and **kwargs.
        _identifier(name.lstrip("*"))
    elif not _PATH.fullmatch(name):
        raise ValueError(f"{name!r} is no path of a module")
    return name


def _identifier(name: str) -> str:
    if not name.isidentifier() or name.startswith("__"):
        raise ValueError(f"{name!r} is no name")
    return name
