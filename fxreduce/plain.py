"""Frozen dataclasses from the plain dictionaries and lists that JSON keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def rebuilt(cls: type[T], content: Any) -> T:
    """The object of which `dataclasses.asdict` made `content`, through JSON or not.

    Fields may be numbers, strings, dataclasses, tuples of one kind, mappings, and any of these or
    None.

    Raises:
        KeyError, TypeError, ValueError: the content is of another form.
    """
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if set(content) - set(names):
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(set(content) - set(names)))}")
    return cls(**{name: _value(hints[name], content[name]) for name in names if name in content})


def _value(hint: Any, content: Any) -> Any:
    kind, given = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        if content is None and NoneType in given:
            return None
        (hint,) = (each for each in given if each is not NoneType)
        return _value(hint, content)
    if kind is tuple:
        return tuple(_value(given[0], each) for each in content)
    if kind is not None and issubclass(kind, Mapping):
        return {key: _value(given[1], each) for key, each in content.items()}
    if is_dataclass(hint):
        return rebuilt(hint, content)  # type: ignore[arg-type]
    if hint is float and isinstance(content, int):
        return float(content)
    if not isinstance(content, hint):
        raise TypeError(f"{content!r} is no {hint.__name__}")
    return content
