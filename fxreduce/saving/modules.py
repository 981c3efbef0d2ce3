"""Modules by their class and geometry, without weights: torch's own and those of merged operators.

A module is described by the arguments that would build it anew. What they do not build alike is
not described; it is then taken from the user's model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from fxreduce.errors import UnsupportedError
from fxreduce.graph.border_corrected import BorderCorrectedConv
from fxreduce.graph.modules import BorderedConv, ChannelAffine
from fxreduce.operators.affine import Conv
from fxreduce.saving.arguments import decode, encode

Recipe = dict[str, Any]
_LEFT_OUT = ("self", "device", "dtype", "args", "kwargs")


def recipe_of(module: nn.Module) -> Recipe | None:
    """What builds a module like this one, apart from its weights; None where that is unknown."""
    try:
        recipe = _describe(module)
        again = None if recipe is None else build(recipe)
    except (UnsupportedError, AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return recipe if again is not None and _alike(module, again) else None


def build(recipe: Recipe) -> nn.Module:
    """The module of a recipe, in eval mode, its weights on the meta device.

    Raises:
        UnsupportedError: a recipe of a class that is not torch's or fxreduce's.
        KeyError, TypeError, ValueError: it is damaged.
    """
    name = recipe["class"]
    if name in _BUILD:
        return _BUILD[name](recipe).eval()
    cls = getattr(nn, name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UnsupportedError(f"a saved module is of torch.nn or of fxreduce; seen: {name!r}")
    with torch.device("meta"):
        module: nn.Module = cls(**decode(recipe["arguments"], {}))
    return module.eval()


def _describe(module: nn.Module) -> Recipe | None:
    cls = type(module)
    if isinstance(module, ChannelAffine):
        return {"class": cls.__name__, "size": module.weight.numel(), "rank": module.rank}
    if isinstance(module, BorderedConv):
        shape, bias = list(module.border.shape), module.bias is not None
        conv = _describe(module.conv)
        return {"class": cls.__name__, "conv": conv, "border": shape, "bias": bias}
    if isinstance(module, BorderCorrectedConv):
        parts = [_geometry(operator) for operator in module.geometry]
        return {"class": cls.__name__, "parts": parts}
    if getattr(nn, cls.__name__, None) is not cls or next(module.children(), None) is not None:
        return None
    names = [name for name in inspect.signature(cls).parameters if name not in _LEFT_OUT]
    given = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return {"class": cls.__name__, "arguments": encode({k: _plain(v) for k, v in given.items()})}


def _plain(value: Any) -> Any:
    """A constructor takes whether there is a bias, which the module then has or has not."""
    return True if isinstance(value, Tensor) else value


def _alike(module: nn.Module, again: nn.Module) -> bool:
    mine, its = (
        {n: tuple(t.shape) for kind in (m.named_parameters, m.named_buffers) for n, t in kind()}
        for m in (module, again)
    )
    return mine == its and repr(module) == repr(again) and "forward" not in vars(module)


def _geometry(operator: Conv) -> Recipe:
    content = {field.name: getattr(operator, field.name) for field in fields(operator)}
    return {
        name: list(value.shape) if isinstance(value, Tensor) else encode(value)
        for name, value in content.items()
    }


def _conv(geometry: Mapping[str, Any]) -> Conv:
    tensors = ("weight", "bias", "border")
    given: dict[str, Any] = {
        name: value and torch.empty(value, device="meta") if name in tensors else decode(value, {})
        for name, value in geometry.items()
    }
    return Conv(**given)


def _channel_affine(recipe: Recipe) -> nn.Module:
    weight, bias = (torch.empty(recipe["size"], device="meta") for _ in range(2))
    return ChannelAffine(weight, bias, recipe["rank"])


def _bordered(recipe: Recipe) -> nn.Module:
    border = torch.empty(recipe["border"], device="meta")
    bias = torch.empty(len(border), device="meta") if recipe["bias"] else None
    return BorderedConv(build(recipe["conv"]), border, bias)


def _border_corrected(recipe: Recipe) -> nn.Module:
    inside, first, second = map(_conv, recipe["parts"])
    return BorderCorrectedConv(inside, first, second, torch.empty(0, device="meta"))


_BUILD: dict[str, Callable[[Recipe], nn.Module]] = {
    ChannelAffine.__name__: _channel_affine,
    BorderedConv.__name__: _bordered,
    BorderCorrectedConv.__name__: _border_corrected,
}
