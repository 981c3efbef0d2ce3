"""Which parameters of the original model went into which operator of a rewritten graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from torch import nn
from torch.fx import GraphModule, Node

from fxreduce.graph.nodes import module_of, tensor_of

ORIGINS = "fxreduce.origins"  # node.meta key: names of the parameters that a new module has taken


def origins(graph_module: GraphModule, nodes: Iterable[Node]) -> tuple[str, ...]:
    """The original parameters that went into what the nodes call, each once."""
    return tuple(dict.fromkeys(chain.from_iterable(_origins(graph_module, each) for each in nodes)))


def parameter_map(before: GraphModule, after: GraphModule) -> dict[str, tuple[str, ...]]:
    """Where the parameters of one graph went: their names in another, made from it by rewrites.

    What was not touched has its own name; what went into a merged operator has the names of all
    the parameters of that operator; what is gone has none.
    """
    found: dict[str, dict[str, None]] = {
        name: {} for node in before.graph.nodes for name in _parameters(before, node)
    }
    for node in after.graph.nodes:
        own = tuple(_parameters(after, node))
        taken = node.meta.get(ORIGINS)
        for name in own if taken is None else taken:
            if name in found:  # not what took a rectifier's place
                found[name].update(dict.fromkeys((name,) if taken is None else own))
    return {name: tuple(new) for name, new in found.items()}


def _origins(graph_module: GraphModule, node: Node) -> tuple[str, ...]:
    """The parameters that went into what the node calls, or else those that it reads itself."""
    taken: tuple[str, ...] | None = node.meta.get(ORIGINS)
    if taken is not None:
        return taken
    return (*_parameters(graph_module, node), *_constants(graph_module, node))


def _constants(graph_module: GraphModule, node: Node) -> Iterator[str]:
    """The parameters that the node reads, directly or reshaped by nodes that read nothing else."""
    for given in node.all_input_nodes:
        if given.op == "get_attr":
            yield from given.meta.get(ORIGINS, _parameters(graph_module, given))
        elif _is_constant(given):
            yield from _constants(graph_module, given)


def _is_constant(node: Node) -> bool:
    return node.op == "get_attr" or (
        node.op in ("call_function", "call_method")
        and bool(node.all_input_nodes)
        and all(map(_is_constant, node.all_input_nodes))
    )


def _parameters(graph_module: GraphModule, node: Node) -> Iterator[str]:
    """The names of the parameters of the module that the node calls, or of the one that it gets."""
    module, constant = module_of(graph_module, node), tensor_of(graph_module, node)
    if module is not None:
        for name, _ in module.named_parameters(remove_duplicate=False):
            yield f"{node.target}.{name}"
    elif isinstance(constant, nn.Parameter) and node.users:
        yield str(node.target)
