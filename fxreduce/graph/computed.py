"""Weights that hooks compute at each call, as those of torch.nn.utils.weight_norm do.

They are plain attributes, and torch does not copy them while they hold the graph of gradients that
they were computed with.
"""

from __future__ import annotations

from torch import Tensor, nn


def copies_of_computed(module: nn.Module) -> dict[int, object]:
    """Copies of such weights without that graph, by the id of each: a memo for `deepcopy`."""
    return {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
