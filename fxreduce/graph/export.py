"""The last rung of the capture ladder: torch.export, brought into the form of a symbolic trace.

The exported graph gets the model's own signature, its outputs' own types, the names that the model
has for its modules and weights, and the model's own weights.
"""

from __future__ import annotations

import inspect
import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from fxreduce.errors import CaptureError, first_line
from fxreduce.graph.nodes import is_guards
from fxreduce.graph.signature import (
    Arguments,
    checks,
    constants,
    is_constant,
    parameters,
    require_defaults,
    require_given,
)

BOUND = "fxreduce.bound"  # GraphModule.meta key: the sizes that the graph is bound to, and why
_STACK = "nn_module_stack"
# Which sizes of the example stay in the graph.
_ALL, _BATCH, _NONE = "none", "the example's sizes but for the batch", "the example's sizes"
_LONGEST_SIZE = 12  # operations in the expression of a size


class Rebuild(nn.Module):
    """Puts the values of a graph together to an output of the model's own type, as a dataclass."""

    def __init__(self, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, *values: Any) -> Any:
        return pytree.tree_unflatten(values, self.spec)


def trace_export(model: nn.Module, given: Arguments | None) -> GraphModule:
    """torch.export on example inputs, for every size of batch and image that the model allows.

    Raises:
        CaptureError: there are no example inputs, or some are in containers of other types than
            tuples, lists and dictionaries.
    """
    if given is None:
        raise CaptureError("needs example inputs")
    # Several inputs that are one tensor would become one input.
    given = given.map(torch.clone)
    exported, bound = _export(model, given)
    graph_module = exported.module()
    assert isinstance(graph_module, GraphModule)
    _restore_signature(graph_module, model, given)
    _restore_outputs(graph_module)
    _restore_names(graph_module, model)
    result = GraphModule(graph_module, graph_module.graph, type(model).__name__)
    if bound is not None:
        result.meta[BOUND] = bound
    return result


def _export(model: nn.Module, given: Arguments) -> tuple[ExportedProgram, str | None]:
    """The model exported for as many sizes as it can be, and which sizes it is bound to, if so."""
    reason = ""
    raised: Exception | None = None
    for axes in (_ALL, _BATCH, _NONE):
        for example in (_widened(given), given):  # one sample would make one a constant
            if example is None:
                continue
            try:
                exported = _export_for(model, example, axes)
            except Exception as error:  # export runs the user's forward, which may raise anything
                raised, reason = error, reason or first_line(error)
            else:
                bound = (
                    None if axes is _ALL else f"torch.export bound the graph to {axes}: {reason}"
                )
                return exported, bound
    assert raised is not None
    raise raised


def _export_for(model: nn.Module, given: Arguments, axes: str) -> ExportedProgram:
    bound = given.bind(model)
    shapes = {name: _dynamic(value, axes) for name, value in bound.arguments.items()}
    with torch.no_grad(), _visible_operators(), _simple_sizes(model):
        return export(
            model,
            bound.args,
            bound.kwargs,
            dynamic_shapes=None if axes is _NONE else shapes,
            strict=False,
        )


@contextmanager
def _simple_sizes(model: nn.Module) -> Iterator[None]:
    """Raise CaptureError where a size follows from the inputs' in so many steps that it takes long.

    torch.export simplifies each such expression again and again, minutes for padded windows.
    """

    def check(_module: nn.Module, args: tuple[Any, ...]) -> None:
        for size in chain(*(each.shape for each in args if isinstance(each, Tensor))):
            symbol = getattr(size, "node", None)  # of a size that is not fixed
            if symbol is not None and symbol.expr.count_ops() > _LONGEST_SIZE:
                raise CaptureError("sizes inside follow from the inputs' in too many steps")

    hooks = [module.register_forward_pre_hook(check) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _visible_operators() -> Iterator[None]:
    """Let torch run no encoder layer as one opaque operator, nor log what it could not settle."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(before)


def _dynamic(value: Any, axes: str) -> Any:
    """The axes of every tensor that may have any size, unless the model fixes it."""

    def dims(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return dict.fromkeys(range(leaf.dim() if axes is _ALL else min(leaf.dim(), 1)), Dim.AUTO)

    return pytree.tree_map(dims, value)


def _widened(given: Arguments) -> Arguments | None:
    """The arguments twice where they are a batch of one, which would make one a constant."""
    leaves = [x for x in pytree.tree_leaves((given.args, given.kwargs)) if isinstance(x, Tensor)]
    if not leaves or any(leaf.dim() == 0 or len(leaf) != 1 for leaf in leaves):
        return None
    return given.map(lambda leaf: torch.cat((leaf, leaf)))


def _restore_signature(graph_module: GraphModule, model: nn.Module, given: Arguments) -> None:
    """Give the graph one placeholder for each argument of the model's forward."""
    graph = graph_module.graph
    flat = graph.find_nodes(op="placeholder")
    values = dict(_by_name(given.bind(model)))
    several = [name for name in values if name not in parameters(model)]  # of *args and **kwargs
    with graph.inserting_before(next(iter(graph.nodes))):
        inputs = {
            name: graph.create_node("placeholder", name, default)
            for name, default in _parameters(model, values).items()
        }
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        for function, name, *more in checks(model, constants(model, given)):
            graph.call_function(function, (inputs[name], *more))
        for name in several:
            graph.call_function(require_given, (inputs[name], name))
        leaves = iter(flat)
        for name, value in values.items():
            for path, _ in pytree.tree_flatten_with_path(value)[0]:
                leaf = next(leaves)
                if leaf.users:
                    leaf.replace_all_uses_with(_read(graph, inputs[name], path))
    if several:
        _erase_guards(graph_module)
    for leaf in flat:
        graph.erase_node(leaf)
    require_defaults(graph)


def _erase_guards(graph_module: GraphModule) -> None:
    """Leave out torch's checks of sizes, which do not find what came in `*args` and `**kwargs`."""
    for node in graph_module.graph.find_nodes(op="call_module"):
        if is_guards(graph_module, node):
            graph_module.graph.erase_node(node)
            graph_module.delete_submodule(str(node.target))


def _by_name(bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    """The given arguments in order, those of `*args` and `**kwargs` one by one."""
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{place}", each) for place, each in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def _parameters(model: nn.Module, values: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The graph's inputs in order, each with its default in a tuple, empty where it has none."""
    known = parameters(model)
    positional = (n for n, each in known.items() if each.kind is not each.KEYWORD_ONLY)
    found: dict[str, tuple[Any, ...]] = {}
    for name in dict.fromkeys((*positional, *values, *known)):  # those of `*args` in their place
        has_default = name in known and known[name].default is not inspect.Parameter.empty
        default = known[name].default if has_default else None
        if name not in values and not is_constant(default):
            continue  # a graph cannot hold it, and does not need it
        found[name] = (default if is_constant(default) else None,) if has_default else ()
    return found


def _read(graph: Graph, value: Node, path: tuple[Any, ...]) -> Node:
    """The node that reads a place inside an input."""
    for key in path:
        if isinstance(key, pytree.SequenceKey):
            value = graph.call_function(operator.getitem, (value, key.idx))
        elif isinstance(key, pytree.MappingKey):
            value = graph.call_function(operator.getitem, (value, key.key))
        elif isinstance(key, pytree.GetAttrKey):
            value = graph.call_function(getattr, (value, key.name))
        else:
            raise CaptureError(f"an input lies in a container that is read by {key}")
    return value


def _restore_outputs(graph_module: GraphModule) -> None:
    """Return what the model returns, of the same types, and read inputs as the signature says."""
    graph = graph_module.graph
    spec = graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    output = graph.output_node()
    values = output.args[0]
    assert isinstance(values, (tuple, list))
    assert spec is not None
    with graph.inserting_before(output):
        output.args = (_rebuilt(graph_module, spec, list(values)),)
    graph.set_codegen(CodeGen())


def _rebuilt(graph_module: GraphModule, spec: pytree.TreeSpec, values: list[Any]) -> Any:
    if spec.is_leaf():
        return values[0]
    if not _is_plain(spec):
        path = "rebuild_output"
        while hasattr(graph_module, path):
            path += "_"
        graph_module.add_submodule(path, Rebuild(spec))
        return graph_module.graph.call_module(path, tuple(values))
    return pytree.tree_unflatten(values, spec)


def _is_plain(spec: pytree.TreeSpec) -> bool:
    """Whether a graph can return the structure itself: tuples, lists and dictionaries by name."""
    if spec.is_leaf():
        return True
    named = spec.type is not dict or all(isinstance(key, str) for key in spec.context)
    return spec.type in (tuple, list, dict) and named and all(map(_is_plain, spec.children()))


def _restore_names(graph_module: GraphModule, model: nn.Module) -> None:
    """Name modules as the model does: one that has two paths by the first, all with their class."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): path for path, module in reversed(modules.items())}
    for node in graph_module.graph.nodes:
        stack = node.meta.get(_STACK) or {}
        node.meta = {}
        paths = {key: str(path).split("@")[0] for key, (path, _) in stack.items()}
        if all(path in modules for path in paths.values()):
            node.meta[_STACK] = {
                key: (first[id(modules[path])], type(modules[path])) for key, path in paths.items()
            }
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            if owner in modules:
                node.target = ".".join(filter(None, (first[id(modules[owner])], name)))
