"""Copying a graph module without its modules and parameters, and without compiling it again."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

# What `GraphModule.recompile` leaves in the module, besides the method `forward` of its class.
_COMPILED = ("_code", "_lineno_map", "_prologue_start", "_in_spec", "_out_spec")


def share(graph_module: GraphModule) -> GraphModule:
    """A graph module with a graph of its own and the same modules and parameters.

    Torch's constructor generates and compiles code for the graph, which takes longer than all that
    most passes do. The copy of a graph has the code of the graph.
    """
    graph = deepcopy(graph_module.graph)
    copy = GraphModule({}, Graph(tracer_cls=graph._tracer_cls), type(graph_module).__name__)
    copy.training = graph_module.training
    copy.meta = dict(graph_module.meta)
    _share_attributes(graph_module, copy, graph)
    copy._graph = graph  # the public setter compiles
    graph.owning_module = copy
    type(copy).forward = type(graph_module).forward
    kept = vars(graph_module)
    vars(copy).update({name: kept[name] for name in _COMPILED if name in kept})
    return copy


def _share_attributes(given: GraphModule, copy: GraphModule, graph: Graph) -> None:
    """Let `copy` hold what the graph reads, at the same paths."""
    paths = (str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr"))
    owners: dict[str, tuple[nn.Module, nn.Module]] = {"": (given, copy)}
    for path in dict.fromkeys(paths):
        parent, _, name = path.rpartition(".")
        theirs, mine = _owners(owners, parent)
        value = getattr(theirs, name)
        if theirs is mine:  # a module around it is shared as a whole
            continue
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            kept = name not in theirs._non_persistent_buffers_set
            mine.register_buffer(name, value, persistent=kept)
        else:
            setattr(mine, name, value)


def _owners(
    owners: dict[str, tuple[nn.Module, nn.Module]], path: str
) -> tuple[nn.Module, nn.Module]:
    """The modules at `path` in what is copied and in the copy."""
    found = owners.get(path)
    if found is None:
        parent, _, name = path.rpartition(".")
        theirs, mine = _owners(owners, parent)
        inner = getattr(theirs, name)
        own = getattr(mine, name, None)
        if own is None:
            own = nn.Module()
            setattr(mine, name, own)
        found = owners[path] = inner, own
    return found
