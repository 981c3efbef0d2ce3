"""Models without some of their rectifiers, merged by hand: the bound of what merging can gain.

Each block that loses its rectifiers is one plain operator of its own stride and channels, as who
knows the architecture would write it. Weights are random, and borders are left wrong: such a model
serves to be timed alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from torch.fx import symbolic_trace
from torch.fx.experimental import optimization
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import MLP


def inverted_residuals(model: nn.Module) -> nn.Module:
    """Each block that expands is one 3×3 convolution; what stays has its batch-norms folded."""

    def merged(block: nn.Module) -> nn.Module | None:
        if not isinstance(block, InvertedResidual) or len(block.conv) < 4:
            return None
        expand, depthwise, project = block.conv[0][0], block.conv[1][0], block.conv[2]
        return nn.Conv2d(
            expand.in_channels, project.out_channels, 3, stride=depthwise.stride, padding=1
        )

    replaced = _replace(copy.deepcopy(model), merged).eval()
    return optimization.fuse(symbolic_trace(replaced), no_trace=True).eval()


def perceptrons(model: nn.Module) -> nn.Module:
    """Each MLP is one Linear."""

    def merged(block: nn.Module) -> nn.Module | None:
        if not isinstance(block, MLP) and type(block).__name__ != "Mlp":  # timm's
            return None
        first, *_, last = (part for part in block.modules() if isinstance(part, nn.Linear))
        return nn.Linear(first.in_features, last.out_features)

    return _replace(copy.deepcopy(model), merged).eval()


def _replace(model: nn.Module, merged: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Put what `merged` returns in the place of each module for which it returns something."""
    for path, module in list(model.named_modules()):
        if (by := merged(module)) is not None:
            model.set_submodule(path, by)
    return model
