"""Rectifiers: the registry, and reading a node of any dialect as one.

A rectifier is registered once by its name in torch (`relu`): its functional, its method, its ATen
operator and their in-place forms follow from the name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain, count
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.errors import UnsupportedError
from fxreduce.extensions import load_extensions
from fxreduce.graph.nodes import (
    argument,
    is_inplace,
    module_of,
    module_path,
    operation,
)

SITE = "fxreduce.site"  # node.meta key: the site's name


@dataclass(frozen=True)
class RectifierKind:
    """How a rectifier is recognised.

    Attributes:
        kind: its name, by which sites are reported.
        modules: module classes whose call is this rectifier.
        operations: names under which torch, a tensor's methods and ATen have it.
        functions: further callables, from outside torch.
        elementwise: False where the channel matters (PReLU).
    """

    kind: str
    modules: tuple[type[nn.Module], ...] = ()
    operations: tuple[str, ...] = ()
    functions: tuple[Callable[..., Tensor], ...] = ()
    elementwise: bool = True


@dataclass(frozen=True)
class Rectifier:
    """One call of a rectifier, read from a node."""

    kind: str
    node: Node
    inplace: bool
    elementwise: bool

    @property
    def input(self) -> Node:
        """The pre-activation; it is another node once what stood before has been edited."""
        given = _given(self.node)
        assert given is not None  # or the node had not been read as a rectifier
        return given


@dataclass
class _Registry:
    modules: dict[type[nn.Module], RectifierKind] = field(default_factory=dict)
    operations: dict[str, RectifierKind] = field(default_factory=dict)
    functions: dict[Callable[..., Tensor], RectifierKind] = field(default_factory=dict)


_REGISTRY = _Registry()


def register_rectifier(
    kind: str,
    *,
    modules: Iterable[type[nn.Module]] = (),
    functions: Iterable[Callable[..., Tensor]] = (),
    operations: Iterable[str] = (),
    elementwise: bool = True,
) -> RectifierKind:
    """Make fxreduce see calls of a rectifier of your own as sites.

    Args:
        kind: its name in reports. Registering a kind again adds to what it is found by.
        modules: module classes; a symbolic trace keeps their calls whole.
        functions: Python functions that take the pre-activation first. A symbolic trace keeps
            their calls whole where they are called by a name of the caller's module; elsewhere
            wrap them with `torch.fx.wrap`.
        operations: names of torch functions, tensor methods and ATen operators, such as "relu".
        elementwise: False where the function depends on the channel, as PReLU does.

    Raises:
        UnsupportedError: nothing was given by which the rectifier could be found.
    """
    entry = RectifierKind(kind, tuple(modules), tuple(operations), tuple(functions), elementwise)
    if not (entry.modules or entry.operations or entry.functions):
        raise UnsupportedError(
            f"rectifier {kind!r} needs modules, functions or operations to be found by; none given"
        )
    _REGISTRY.modules.update(dict.fromkeys(entry.modules, entry))
    _REGISTRY.operations.update(dict.fromkeys(entry.operations, entry))
    _REGISTRY.functions.update(dict.fromkeys(entry.functions, entry))
    return entry


for _kind, _modules in {
    "relu": (nn.ReLU,),
    "relu6": (nn.ReLU6,),
    "hardtanh": (nn.Hardtanh,),
    "leaky_relu": (nn.LeakyReLU,),
    "rrelu": (nn.RReLU,),
    "elu": (nn.ELU,),
    "selu": (nn.SELU,),
    "celu": (nn.CELU,),
    "gelu": (nn.GELU,),
    "silu": (nn.SiLU,),
    "mish": (nn.Mish,),
    "hardswish": (nn.Hardswish,),
    "softplus": (nn.Softplus,),
    "threshold": (nn.Threshold,),
}.items():
    register_rectifier(_kind, modules=_modules, operations=(_kind,))
register_rectifier("threshold", operations=("_threshold",))  # what F.threshold calls itself
register_rectifier("prelu", modules=(nn.PReLU,), operations=("prelu",), elementwise=False)


def read_rectifier(graph_module: GraphModule, node: Node) -> Rectifier | None:
    """The rectifier that the node calls, or None."""
    found = _lookup(graph_module, node)
    if found is None:
        return None
    if _given(node) is None:
        return None
    kind = found.kind
    bounds = parameters_of(graph_module, node, kind)
    if kind == "hardtanh" and tuple(bounds.values()) == (0, 6):
        kind = "relu6"  # torch.export may write the one as the other
    return Rectifier(kind, node, is_inplace(graph_module, node), found.elementwise)


def _given(node: Node) -> Node | None:
    given = argument(node, 0, "input", node.kwargs.get("self"))
    return given if isinstance(given, Node) else None


def _lookup(graph_module: GraphModule, node: Node) -> RectifierKind | None:
    load_extensions("rectifiers")
    module = module_of(graph_module, node)
    if module is not None:
        return None if "forward" in vars(module) else _kind_of_class(type(module))
    if node.op == "call_function" and node.target in _REGISTRY.functions:
        return _REGISTRY.functions[cast(Callable[..., Tensor], node.target)]
    name = operation(node)
    return None if name is None else _REGISTRY.operations.get(name.removesuffix("_"))


def is_rectifier_module(module: nn.Module) -> bool:
    """Whether the module is of a registered class, or of one that has kept its forward."""
    load_extensions("rectifiers")
    return _kind_of_class(type(module)) is not None


def rectifier_functions() -> tuple[Callable[..., Tensor], ...]:
    """The registered functions from outside torch."""
    load_extensions("rectifiers")
    return tuple(_REGISTRY.functions)


def _kind_of_class(cls: type) -> RectifierKind | None:
    """The kind of the nearest registered base whose forward the class has kept."""
    for base in cls.__mro__:
        if base in _REGISTRY.modules:
            kept = cls.forward is base.forward  # type: ignore[attr-defined]
            return _REGISTRY.modules[base] if kept else None
    return None


def parameters_of(graph_module: GraphModule, node: Node, kind: str) -> dict[str, float]:
    """The numbers that a hardtanh or a leaky ReLU is called with, by torch's names."""
    module = module_of(graph_module, node)
    return {
        name: getattr(module, name) if module is not None else argument(node, place, name, default)
        for place, (name, default) in enumerate(_PARAMETERS.get(kind, {}).items(), 1)
    }


_PARAMETERS: dict[str, dict[str, float]] = {
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "leaky_relu": {"negative_slope": 0.01},
}


@dataclass(frozen=True)
class Site:
    """One call of a rectifier, by a name that is the same whatever captured the graph."""

    name: str
    rectifier: Rectifier

    @property
    def node(self) -> Node:
        return self.rectifier.node


def find_sites(graph_module: GraphModule) -> tuple[Site, ...]:
    """The rectifier calls of a graph, in order of execution.

    A site is named by the path of its rectifier module, or by the path of the module that calls a
    functional one and the rectifier's kind; later calls under one name get `#1`, `#2`, ...
    """
    sites = []
    # A site keeps its name when an earlier one of the same module is removed.
    taken = {node.meta.get(SITE) for node in graph_module.graph.nodes}
    for node in graph_module.graph.nodes:
        rectifier = read_rectifier(graph_module, node)
        if rectifier is None:
            continue
        if SITE not in node.meta:
            node.meta[SITE] = _free_name(_site_path(rectifier), taken)
            taken.add(node.meta[SITE])
        sites.append(Site(node.meta[SITE], rectifier))
    return tuple(sites)


def _free_name(path: str, taken: Collection[object]) -> str:
    """The path, or the first of `path#1`, `path#2`, ... that is not taken."""
    names = chain((path,), (f"{path}#{index}" for index in count(1)))
    return next(name for name in names if name not in taken)


def _site_path(rectifier: Rectifier) -> str:
    if rectifier.node.op == "call_module":
        return str(rectifier.node.target)
    path, owner = module_path(rectifier.node)
    if path and _is_rectifier_class(owner):
        return path
    return f"{path}.{rectifier.kind}" if path else rectifier.kind


def _is_rectifier_class(owner: object) -> bool:
    """Whether `owner`, a class or (from torch.export) its qualified name, is a registered one."""
    if isinstance(owner, type):
        return _kind_of_class(owner) is not None
    return any(owner == f"{cls.__module__}.{cls.__qualname__}" for cls in _REGISTRY.modules)
