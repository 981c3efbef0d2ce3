"""The arguments of a model's forward: what a call gives, and what keeps its default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, dtype, nn
from torch.fx import Graph, Proxy
from torch.utils import _pytree as pytree

from fxreduce.errors import CaptureError, first_line

# What a graph can hold as a constant and compare with what it is called with.
_CONSTANTS = (type(None), bool, int, float, str, dtype)


@dataclass(frozen=True)
class Arguments:
    """Positional and keyword arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> Arguments:
        """What example inputs stand for: one value, a tuple of values or a dictionary by name."""
        if isinstance(inputs, Arguments):
            return inputs
        if isinstance(inputs, dict):
            return cls((), dict(inputs))
        return cls(tuple(inputs)) if isinstance(inputs, (tuple, list)) else cls((inputs,))

    def map(self, function: Any) -> Arguments:
        """The arguments with a function applied to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Arguments(args, kwargs)

    def bind(self, module: nn.Module) -> inspect.BoundArguments:
        """The arguments by the names of the parameters of the module's forward.

        Raises:
            CaptureError: forward does not take them.
        """
        try:
            return inspect.signature(module.forward).bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise CaptureError(
                f"{type(module).__name__}.forward does not take the example inputs: "
                f"{first_line(error)}. Pass a tensor, a tuple of positional or a dictionary of "
                "keyword arguments"
            ) from error


def parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of the module's forward by name, without `*args` and `**kwargs`."""
    found = inspect.signature(module.forward).parameters
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: each for name, each in found.items() if each.kind not in several}


def constants(
    module: nn.Module, given: Arguments | None, *, numbers: bool = True
) -> dict[str, Any]:
    """The optional arguments that are constants of the graph, with their values.

    They are those that have a default and are given without a tensor, or not at all. Where nothing
    is given and every argument has a default, the first is taken as the model's input.

    Args:
        numbers: whether integers and floating-point numbers are constants, too.
    """
    values = _defaults(module)
    if given is not None:
        bound = given.bind(module).arguments
        values = {name: bound.get(name, default) for name, default in values.items()}
    elif values and len(values) == len(parameters(module)):
        values.pop(next(iter(values)))
    kept = {name: value for name, value in values.items() if is_constant(value)}
    return {name: v for name, v in kept.items() if numbers or type(v) not in (int, float)}


def checks(module: nn.Module, fixed: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """What a graph checks of its optional inputs: a function, the input's name, more arguments."""
    optional = False
    for name, each in parameters(module).items():
        lacks_default = each.default is each.empty
        if name in fixed:
            yield require_value, name, fixed[name], name
        elif each.default is None or (lacks_default and optional):
            yield require_given, name, name
        optional |= not lacks_default


def require_defaults(graph: Graph) -> None:
    """Give inputs behind one that has a default one too, as Python wants it: None."""
    optional = False
    for node in graph.find_nodes(op="placeholder"):
        if optional and not node.args and not str(node.target).startswith("*"):
            node.args = (None,)
        optional |= bool(node.args)


def is_constant(value: Any) -> bool:
    """Whether a graph can hold the value and compare it with what it is called with."""
    values = value if type(value) is tuple else (value,)
    return all(isinstance(each, _CONSTANTS) for each in values)


def require_value(value: Any, expected: Any, name: str) -> None:
    """Raise CaptureError where an optional argument is not what the graph was captured with."""
    if _is_retraced(require_value, value, expected, name):
        return
    if not (value is expected or (type(value) is type(expected) and value == expected)):
        raise CaptureError(
            f"the model was captured with {name}={expected!r}, and the graph computes that alone; "
            f"seen: {name}={_describe(value)}. Capture it with example inputs that give {name}"
        )


def require_given(value: Any, name: str) -> None:
    """Raise CaptureError where an optional argument is left out that the graph computes with."""
    if not _is_retraced(require_given, value, name) and value is None:
        raise CaptureError(
            f"the model was captured with {name}, and the graph computes with it; it was left out. "
            f"Pass {name}, or capture the model with example inputs that leave it out"
        )


def _is_retraced(check: Callable[..., None], value: Any, *more: Any) -> bool:
    """Whether the graph is being traced once more; the check then becomes part of the trace."""
    if isinstance(value, Proxy):
        value.tracer.create_proxy("call_function", check, (value, *more), {})
    return isinstance(value, Proxy)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """The arguments that may be left out, with their defaults."""
    found = parameters(module).items()
    return {name: each.default for name, each in found if each.default is not each.empty}


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value) if is_constant(value) else f"a {type(value).__name__}"
