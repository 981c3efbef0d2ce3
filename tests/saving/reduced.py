"""Reduced models that the tests of saving share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxreduce
from tests.models import seeded


@dataclass(frozen=True)
class Reduced:
    """A model, what it was reduced to by leaving out half of its rectifiers, and an input."""

    make: Callable[[], nn.Module]
    module: GraphModule
    x: Tensor

    @classmethod
    def of(cls, make: Callable[[], nn.Module], *shape: int) -> Reduced:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        model = seeded(make)
        sites = [site.name for site in fxreduce.report(fxreduce.fuse(model)).sites]
        return cls(make, fxreduce.fuse(fxreduce.linearize(model, sites[::2]), example_inputs=x), x)

    def apart(self, other: Callable[..., Tensor], x: Tensor | None = None) -> float:
        """How far another module's output is from the reduced one's, relative to the largest."""
        x = self.x if x is None else x
        with torch.no_grad():
            expected, seen = self.module(x), other(x)
        return float((seen - expected).abs().max() / expected.abs().max())
