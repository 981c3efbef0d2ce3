"""Packages that only a part of fxreduce needs, imported where that part runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fxreduce.errors import missing_extra


def required(module: str, purpose: str, extra: str) -> Any:
    """The module of an optional package.

    Raises:
        UnsupportedError: the package is not installed; says which `purpose` needs it, and which
            `extra` of fxreduce brings it.
    """
    try:
        return import_module(module)
    except ImportError:
        raise missing_extra(module.partition(".")[0], purpose, extra) from None
