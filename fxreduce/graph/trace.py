"""The symbolic rungs of the capture ladder: what is traced through, and what is kept whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Tracer

from fxreduce.errors import CaptureError
from fxreduce.graph.affine import is_operator_module, operator_functions
from fxreduce.graph.aliases import Aliases
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.export import Rebuild
from fxreduce.graph.nodes import attribute
from fxreduce.graph.rectifiers import is_rectifier_module, rectifier_functions
from fxreduce.graph.signature import Arguments, checks, constants, require_defaults
from fxreduce.graph.state import kept_state

# Modules of torch that hold rectifiers, some of them as functions.
_HOLDS_RECTIFIERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class _Tracer(Tracer):
    """Keeps some modules and functions whole, torch's own and registered ones among them.

    Args:
        leaves, functions: what is kept whole.
        fixed: optional arguments that are constants. Their placeholders stay, so that the graph has
            the model's signature.
        checked: the checks of optional arguments, see `signature.checks`.
    """

    def __init__(
        self,
        leaves: Iterable[type[nn.Module]] = (),
        functions: Iterable[Callable[..., Any]] = (),
        fixed: Mapping[str, Any] | None = None,
        checked: Iterable[tuple[Any, ...]] = (),
    ) -> None:
        registered = (*rectifier_functions(), *operator_functions())
        super().__init__(autowrap_functions=(*functions, *registered))
        # A border depends on the size of the input, which a symbolic trace does not know.
        self._leaves: tuple[type[nn.Module], ...] = (BorderCorrectedConv, Rebuild, *leaves)
        self._constants = fixed or {}
        self._checks = {name: (check, more) for check, name, *more in checked}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, self._leaves)
            or is_rectifier_module(m)
            or is_operator_module(m)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [args[0], *map(self._checked, args[1:])]

    def _checked(self, value: Any) -> Any:
        """The argument, or the constant that it is; optional ones are checked by the graph."""
        name = value.node.target
        if name in self._checks:
            check, more = self._checks[name]
            self.create_proxy("call_function", check, (value, *more), {})
        return self._constants.get(name, value)


def trace(model: nn.Module, given: Arguments | None) -> GraphModule:
    """`torch.fx.symbolic_trace`, with optional arguments that are not given at their defaults."""
    return _trace(model, given)


def trace_leaves(model: nn.Module, given: Arguments | None) -> GraphModule:
    """Symbolic trace with the leaves that timm marks, where timm is what the model was built with.

    Its `*NormAct*` modules are traced through: as leaves they would hide their activations. So are
    convolutions whose padding follows from the size of the image, but for the padding itself.
    """
    library = sys.modules.get("timm.layers")
    if library is None:
        raise CaptureError("no library is loaded that marks leaves")
    leaves = (
        cls
        for cls in library.get_notrace_modules()
        if "NormAct" not in cls.__name__ and not cls.__name__.endswith("Conv2dSame")
    )
    functions = (library.pad_same, *library.get_notrace_functions())
    return _trace(model, given, tuple(leaves), functions)


def holds_rectifiers(graph_module: GraphModule) -> tuple[str, ...]:
    """The modules that the graph calls as a whole although there are rectifiers inside."""
    called = dict.fromkeys(str(n.target) for n in graph_module.graph.find_nodes(op="call_module"))
    return tuple(path for path in called if _holds(graph_module.get_submodule(path)))


def _holds(module: nn.Module) -> bool:
    return any(
        isinstance(part, _HOLDS_RECTIFIERS) or (part is not module and is_rectifier_module(part))
        for part in module.modules()
    )


def _trace(
    model: nn.Module,
    given: Arguments | None,
    leaves: tuple[type[nn.Module], ...] = (),
    functions: tuple[Callable[..., Any], ...] = (),
) -> GraphModule:
    """The trace for any values of optional numbers, or else for those that are given."""
    fixed = constants(model, given)
    without_numbers = constants(model, given, numbers=False)

    def run(known: Mapping[str, Any]) -> Graph:
        return _graph(model, _Tracer(leaves, functions, known, checks(model, known)))

    try:
        graph = run(without_numbers)
    except Exception:  # what a forward raises that, say, compares a number
        if fixed == without_numbers:
            raise
        graph = run(fixed)
    return GraphModule(model, graph, type(model).__name__)


def _graph(model: nn.Module, tracer: Tracer) -> Graph:
    """The trace; buffers are values of the graph only where the model writes them.

    Otherwise what is computed from buffers alone is a constant.
    """
    with kept_state(model) as written:
        graph = tracer.trace(model)
    require_defaults(graph)
    if not written and not _overwrites_buffers(model, graph):
        return graph
    tracer.proxy_buffer_attributes = True
    with kept_state(model) as written:
        graph = tracer.trace(model)
    require_defaults(graph)
    if written:
        raise CaptureError(f"tracing writes the buffer {written[0]}, the graph would not")
    return graph


def _overwrites_buffers(model: nn.Module, graph: Graph) -> bool:
    """Whether the graph writes buffers, where tracing itself does not."""
    reads = [
        node
        for node in graph.find_nodes(op="get_attr")
        if not isinstance(attribute(model, str(node.target)), nn.Parameter)
    ]
    if not reads:
        return False
    aliases = Aliases(GraphModule(model, graph))
    return any(aliases.overwritten(node) for node in reads)
