"""Masking the smallest weights of layers, by torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

NAME = "weight"


def smallest(weight: Tensor, count: int) -> Tensor:
    """The mask, 0 or 1 of the weight's shape, without the `count` smallest |w| that are not zero.

    Zeros have gone before, and stay masked. Of equal ones the first go.
    """
    sizes = weight.detach().abs().flatten()
    mask = (sizes > 0).to(weight.dtype)
    order = torch.where(sizes > 0, sizes, torch.inf).argsort(stable=True)
    mask[order[: min(count, int(mask.sum()))]] = 0
    return mask.view(weight.shape)


def mask_weights(module: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Mask the weights of layers, in place; masks of earlier rounds stay.

    Args:
        module: holds the layers.
        masks: 0 or 1 of each weight's shape, by the path of the layer.

    Returns:
        How many weights went that were not zero.
    """
    count = 0
    for path, mask in masks.items():
        layer: Any = module.get_submodule(path)
        count += int(torch.count_nonzero(layer.weight * (mask == 0)))
        prune.custom_from_mask(layer, NAME, mask)
    settle(module)
    return count


def masked_layers(module: nn.Module) -> list[str]:
    """The paths of the layers whose weights are masked."""
    return [path for path, part in module.named_modules() if _is_masked(part)]


@torch.no_grad()
def settle(module: nn.Module) -> None:
    """Compute masked weights from what training left of them, without a gradient.

    torch computes them before each forward; until then they are those of the last one, and as long
    as that needed gradients the module cannot be copied.
    """
    for part in module.modules():
        if _is_masked(part):
            setattr(part, NAME, (part.weight_orig * part.weight_mask).detach())  # type: ignore[operator]


def make_permanent(module: nn.Module) -> None:
    """Leave masked weights as plain parameters with zeros, in place."""
    for part in module.modules():
        if _is_masked(part):
            prune.remove(part, NAME)


def _is_masked(part: nn.Module) -> bool:
    return f"{NAME}_mask" in part._buffers
