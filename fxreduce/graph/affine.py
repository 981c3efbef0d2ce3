"""Reading a node of any dialect as an affine operator: the registry and the entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxreduce.errors import UnsupportedError
from fxreduce.extensions import load_extensions
from fxreduce.graph.nodes import has_hooks, module_of, operation, tensor_of
from fxreduce.operators.affine import Conv, Operator, Refusal


@dataclass(frozen=True)
class AffineCall:
    """One call of an affine operator, read from a node.

    The operator's tensors are the model's own: read them, never write them.
    """

    operator: Operator
    node: Node
    input: Node
    like: Tensor | None
    """A tensor with the dtype, device and memory format of the call's weights, if it has any.

    A pooling has none. Nor has a single number, which does not even tell how many channels there
    are: other inputs may have others than the example."""


Reader = Callable[[GraphModule, Node], tuple[Operator, Node] | Refusal | None]
_MODULES: dict[type[nn.Module], Reader] = {}
_OPERATIONS: dict[str, Reader] = {}
_FUNCTIONS: dict[Callable[..., Tensor], Reader] = {}
_WEIGHTLESS: set[Reader] = set()


def register_operator(
    reader: Reader,
    *,
    modules: Iterable[type[nn.Module]] = (),
    operations: Iterable[str] = (),
    functions: Iterable[Callable[..., Tensor]] = (),
    weightless: bool = False,
) -> Reader:
    """Make fxreduce read an affine operator of your own.

    Args:
        reader: takes the graph module and a node, and returns the operator with the node of its
            input, a `Refusal` where it is affine but cannot be merged, or None where it is not
            affine at all.
        modules: module classes whose call `reader` reads, subclasses included; a symbolic trace
            keeps their calls whole.
        operations: names of torch functions, tensor methods or ATen operators that it reads.
        functions: Python functions that it reads; a symbolic trace keeps their calls whole where
            they are called by a name of the caller's module, elsewhere wrap them with
            `torch.fx.wrap`.
        weightless: what it reads has no weights of its own, as a pooling. It merges with operators
            that have, whose dtype and device the merged one takes, and is not counted as one.

    Raises:
        UnsupportedError: nothing was given by which the operator could be found.
    """
    modules, operations, functions = tuple(modules), tuple(operations), tuple(functions)
    if not (modules or operations or functions):
        raise UnsupportedError(
            "an operator needs modules, operations or functions to be found by; none given"
        )
    _MODULES.update(dict.fromkeys(modules, reader))
    _OPERATIONS.update(dict.fromkeys(operations, reader))
    _FUNCTIONS.update(dict.fromkeys(functions, reader))
    if weightless:
        _WEIGHTLESS.add(reader)
    return reader


def read_affine(graph_module: GraphModule, node: Node) -> AffineCall | Refusal | None:
    """The affine operator that the node calls; a refusal where it is one that cannot be merged."""
    reader = _find(graph_module, node)
    if reader is None:
        return None
    module = module_of(graph_module, node)
    if module is not None and has_hooks(module):
        return Refusal(f"{node.target} has forward hooks, which a merged operator would not run")
    read = reader(graph_module, node)
    if read is None or isinstance(read, Refusal):
        return read
    operator, given = read
    like = None if reader in _WEIGHTLESS else _like(graph_module, node, operator)
    return AffineCall(operator, node, given, like)


def is_weightless(graph_module: GraphModule, node: Node) -> bool:
    """Whether the node calls what is affine without weights, as a pooling is."""
    return _find(graph_module, node) in _WEIGHTLESS


def like_of(calls: Iterable[AffineCall]) -> Tensor | None:
    """What the operator merged from `calls` shall be like: the weight that tells most."""
    likes = (call.like for call in calls if call.like is not None)
    # A convolution's weight tells the memory format too, a batch-norm's does not.
    return max(likes, key=lambda tensor: tensor.dim(), default=None)


def _like(graph_module: GraphModule, node: Node, operator: Operator) -> Tensor | None:
    if isinstance(operator, Conv):
        return operator.weight
    module = module_of(graph_module, node)
    if module is not None:
        return next(chain(module.parameters(), module.buffers()), None)
    constants = (tensor_of(graph_module, given) for given in node.all_input_nodes)
    return next((each for each in constants if each is not None and each.numel() > 1), None)


def is_operator_module(module: nn.Module) -> bool:
    """Whether the module is of a registered class from outside torch."""
    load_extensions("operators")
    registered = _registered_class(module)
    return registered is not None and not registered.__module__.startswith("torch.")


def operator_functions() -> tuple[Callable[..., Tensor], ...]:
    """The registered functions from outside torch."""
    load_extensions("operators")
    return tuple(_FUNCTIONS)


def _find(graph_module: GraphModule, node: Node) -> Reader | None:
    load_extensions("operators")
    module = module_of(graph_module, node)
    if module is not None:
        registered = _registered_class(module)
        return None if registered is None else _MODULES[registered]
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return _FUNCTIONS[cast(Callable[..., Tensor], node.target)]
    return _OPERATIONS.get(operation(node) or "")


def _registered_class(module: nn.Module) -> type[nn.Module] | None:
    return next((cls for cls in type(module).__mro__ if cls in _MODULES), None)
