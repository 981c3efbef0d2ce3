"""Rectifiers that are spelled out: x * sigmoid(x) is SiLU, 0.5 x (1 + tanh(...)) is GELU.

Instead of a rule for each spelling, the elementwise calls that a value follows from are run on a
grid of numbers. They use nothing but that one input and literals, so that they compute one function
of a number; where it is a known one to the rounding of float64, one call takes their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import functional

from fxreduce.graph.nodes import has_hooks, module_of, operation
from fxreduce.graph.rectifiers import register_rectifier

_LAST = {"mul", "div"}
_NONLINEAR = {"sigmoid", "tanh", "erf", "relu6", "hardtanh", "clamp", "softplus", "hardsigmoid"}
_ELEMENTWISE = _LAST | _NONLINEAR | {"add", "sub", "neg", "pow", "square"}
_MODULES = (nn.Sigmoid, nn.Tanh, nn.ReLU6, nn.Softplus, nn.Hardsigmoid)
_LONGEST = 16  # more calls than any spelling has
_AGREEMENT = 1e-10


def quick_gelu(x: Tensor) -> Tensor:
    """Hendrycks and Gimpel's fast approximation of GELU, x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


register_rectifier("quick_gelu", functions=(quick_gelu,))
# A gate by hard sigmoid is no rectifier, but the ReLU6 that it is spelled with would be one.
_KNOWN: tuple[tuple[Callable[..., Tensor], dict[str, Any]], ...] = (
    (functional.silu, {}),
    (functional.gelu, {}),
    (functional.gelu, {"approximate": "tanh"}),
    (functional.mish, {}),
    (functional.hardswish, {}),
    (functional.hardsigmoid, {}),
    (quick_gelu, {}),
)


def compose_rectifiers(graph_module: GraphModule) -> None:
    """Let one call take the place of those that spell a rectifier out."""
    graph = graph_module.graph
    places = {node: place for place, node in enumerate(graph.nodes)}
    erased: set[Node] = set()
    for last in reversed(list(graph.nodes)):  # the longest spelling first
        if last in erased or operation(last) not in _LAST:
            continue
        for given, calls in _spellings(graph_module, last, places):
            known = _known(graph_module, given, calls)
            if known is None:
                continue
            function, options = known
            with graph.inserting_before(last):
                call = graph.call_function(function, (given,), dict(options))
            call.meta = dict(last.meta)
            places[call] = places[last]
            last.replace_all_uses_with(call)
            for node in calls:
                graph.erase_node(node)
            erased.update(calls)
            break
    if erased:
        graph.lint()
        graph_module.recompile()


def _spellings(
    graph_module: GraphModule, last: Node, places: dict[Node, int]
) -> Iterator[tuple[Node, list[Node]]]:
    """Inputs that `last` is a function of, each with the calls in between, last ones first."""
    calls = [last]
    frontier = set(last.all_input_nodes)
    while frontier and len(calls) < _LONGEST:
        latest = max(frontier, key=places.__getitem__)
        if len(frontier) == 1 and any(_name(graph_module, each) in _NONLINEAR for each in calls):
            yield latest, calls
        if _name(graph_module, latest) not in _ELEMENTWISE or not set(latest.users) <= {*calls}:
            return
        calls.append(latest)
        frontier.remove(latest)
        frontier.update(latest.all_input_nodes)


def _name(graph_module: GraphModule, node: Node) -> str | None:
    module = module_of(graph_module, node)
    if module is None:
        return operation(node)
    if type(module) not in _MODULES or has_hooks(module) or getattr(module, "inplace", False):
        return None
    return type(module).__name__.lower()


def _known(
    graph_module: GraphModule, given: Node, calls: list[Node]
) -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """The known function that the calls compute, if it is one."""
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    values: dict[Node, Any] = {given: x}
    try:
        for node in reversed(calls):
            values[node] = _run(graph_module, node, values)
    except (RuntimeError, TypeError):  # arguments that are no numbers
        return None
    for function, options in _KNOWN:
        if torch.allclose(values[calls[0]], function(x, **options), _AGREEMENT, _AGREEMENT):
            return function, options
    return None


def _run(graph_module: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    target: Any = node.target
    if node.op == "call_module":
        target = module_of(graph_module, node)
    elif node.op == "call_method":
        target = getattr(Tensor, target)
    return target(*args, **kwargs)
