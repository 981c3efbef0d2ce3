"""Models inside wrappers that only run them: data parallelism and torch.compile."""

from __future__ import annotations

import sys
from copy import deepcopy

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fxreduce.graph.computed import copies_of_computed


def inner(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper runs; None where the module is no wrapper."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        wrapped = module.module
    else:
        # Importing dynamo takes long; what it has wrapped is there only once it is loaded.
        dynamo = sys.modules.get("torch._dynamo.eval_frame")
        if dynamo is None or not isinstance(module, dynamo.OptimizedModule):
            return None
        wrapped = module._orig_mod
    assert isinstance(wrapped, nn.Module)
    return wrapped


def unwrap(module: nn.Module) -> nn.Module:
    """The module without the wrappers around it; it is not copied."""
    while (wrapped := inner(module)) is not None:
        module = wrapped
    return module


def copy_unwrapped(module: nn.Module) -> nn.Module:
    """A copy without wrappers around the module and its parts; names lose what wrappers add."""
    module = unwrap(module)
    memo = copies_of_computed(module)
    for each in reversed(list(module.modules())):  # wrappers inside of wrappers first
        if (wrapped := inner(each)) is not None:
            memo[id(each)] = deepcopy(wrapped, memo)
    return deepcopy(module, memo)


def wrappers(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """The wrappers around a module and its parts: the name of each and its class."""
    found = []
    while (wrapped := inner(module)) is not None:
        found.append(("", type(module).__name__))
        module = wrapped
    return (
        *found,
        *(
            (name, type(each).__name__)
            for name, each in module.named_modules()
            if inner(each) is not None
        ),
    )
