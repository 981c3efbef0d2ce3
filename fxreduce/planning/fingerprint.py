"""What makes a model the architecture that a plan was made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ctypes import string_at
from hashlib import sha256
from operator import itemgetter
from typing import Protocol

from torch import Tensor, nn
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
    for name, tensor in sorted(_used_tensors(graph_module), key=itemgetter(0)):
        if isinstance(tensor, nn.Parameter):
            shapes.setdefault(id(tensor), f"parameter {name}: {tuple(tensor.shape)}")
    return (*sites, *shapes.values())


def _used_tensors(graph_module: GraphModule) -> Iterator[tuple[str, Tensor]]:
    for node in graph_module.graph.nodes:
        module, constant = module_of(graph_module, node), tensor_of(graph_module, node)
        if module is not None:
            for kind in (module.named_parameters, module.named_buffers):
                for name, tensor in kind(remove_duplicate=False):
                    yield f"{node.target}.{name}", tensor
        elif constant is not None and node.users:
            yield str(node.target), constant


def require_same(expected: Fingerprint, seen: Fingerprint, made: str = "the plan") -> None:
    """Raise PlanError, naming the first difference, unless the fingerprints are equal.

    `made` is what was made for the expected one.
    """
    advice = f"Make {made.replace('the', 'a new', 1)} for this model"
    for place, (a, b) in enumerate(zip(expected, seen, strict=False)):
        if a != b:
            raise PlanError(
                f"{made} was made for another architecture: at position {place} it has {a!r}, "
                f"the model {b!r}. {advice}"
            )
    if len(expected) != len(seen):
        longer, name = (expected, made) if len(expected) > len(seen) else (seen, "the model")
        raise PlanError(
            f"{made} was made for another architecture: only {name} has "
            f"{longer[min(len(expected), len(seen))]!r} and what follows. {advice}"
        )


def digest(graph_module: GraphModule) -> str:
    """A hash of the weights and statistics that are used, the same whatever captured the graph."""
    return digest_of(_used_tensors(graph_module))


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors by name, of those in floating point."""
    found = sha256()
    seen = set[int]()  # tied weights count once, as do those of modules that are called twice
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            hash_tensors(found, {name: tensor})
    return found.hexdigest()


def hash_tensors(found: Hash, tensors: Mapping[str, Tensor]) -> None:
    """Let a hash take in tensors by name, in the order of their names."""
    for name, tensor in sorted(tensors.items(), key=itemgetter(0)):
        whole = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(string_at(whole.data_ptr(), whole.numel() * whole.element_size()))


class Hash(Protocol):
    """One of hashlib's."""

    def update(self, data: bytes, /) -> None: ...
