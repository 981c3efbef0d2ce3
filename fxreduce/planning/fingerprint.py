"""What makes a model the architecture that a plan was made for."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from torch import nn
from torch.fx import GraphModule

from fxreduce.errors import PlanError
from fxreduce.graph.nodes import module_of, tensor_of
from fxreduce.graph.rectifiers import find_sites

Fingerprint = tuple[str, ...]


def fingerprint(graph_module: GraphModule) -> Fingerprint:
    """Every site by name and kind, in order, and every parameter that is used by name and shape.

    It is the same whatever captured the graph, and does not depend on the weights.
    """
    sites = [f"site {each.name}: {each.rectifier.kind}" for each in find_sites(graph_module)]
    shapes: dict[int, str] = {}  # tied parameters count once, under the first of their names
    for name, parameter in sorted(_used_parameters(graph_module), key=itemgetter(0)):
        shapes.setdefault(id(parameter), f"parameter {name}: {tuple(parameter.shape)}")
    return (*sites, *shapes.values())


def _used_parameters(graph_module: GraphModule) -> Iterator[tuple[str, nn.Parameter]]:
    for node in graph_module.graph.nodes:
        module, constant = module_of(graph_module, node), tensor_of(graph_module, node)
        if module is not None:
            for name, parameter in module.named_parameters(remove_duplicate=False):
                yield f"{node.target}.{name}", parameter
        elif isinstance(constant, nn.Parameter) and node.users:
            yield str(node.target), constant


def require_same(expected: Fingerprint, seen: Fingerprint) -> None:
    """Raise PlanError, naming the first difference, unless the fingerprints are equal."""
    for place, (a, b) in enumerate(zip(expected, seen, strict=False)):
        if a != b:
            raise PlanError(
                f"the plan was made for another architecture: at position {place} it has {a!r}, "
                f"the model {b!r}. Make a new plan for this model"
            )
    if len(expected) != len(seen):
        longer, name = (expected, "plan") if len(expected) > len(seen) else (seen, "model")
        raise PlanError(
            f"the plan was made for another architecture: only the {name} has "
            f"{longer[min(len(expected), len(seen))]!r} and what follows. Make a new plan for this "
            "model"
        )
