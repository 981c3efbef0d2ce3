"""Outputs of a model's own types, made known to torch, which finds the tensors in them then."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

import torch
from torch.utils import _pytree as pytree


def leaves_of(output: Any) -> tuple[list[str], list[Any]]:
    """The values of an output, and where in it each one lies; dataclasses are looked into.

    Places are compared, not containers: a graph returns dictionaries of a class of its own.
    """
    make_known(output)
    pairs, _ = pytree.tree_flatten_with_path(output)
    return [f"output{pytree.keystr(path)}" for path, _ in pairs], [leaf for _, leaf in pairs]


def make_known(output: Any) -> None:
    """Let torch look into the dataclasses of an output, and into the caches of transformers."""
    if "transformers" in sys.modules and not isinstance(output, torch.Tensor):
        with suppress(ImportError, AttributeError):  # older ones, whose caches stay unknown
            library = import_module("transformers.integrations.executorch")
            library.register_dynamic_cache_export_support()
    for leaf in pytree.tree_leaves(output):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            make_known(leaf)


def plain_containers(output: Any) -> Any:
    """The output in dictionaries, tuples and lists, its tensors in the same order.

    A dataclass becomes a dictionary without what is None, any other container a list.
    """
    if is_dataclass(output) and not isinstance(output, type):
        named = {field.name: getattr(output, field.name) for field in fields(output)}
        return {k: plain_containers(each) for k, each in named.items() if each is not None}
    if isinstance(output, dict):
        return {key: plain_containers(each) for key, each in output.items()}
    parts = pytree.tree_leaves(output, is_leaf=lambda each: each is not output)
    if len(parts) == 1 and parts[0] is output:
        return output
    return (tuple if isinstance(output, tuple) else list)(map(plain_containers, parts))
