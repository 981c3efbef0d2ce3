"""Which torch runs the tests, where older ones lack what a test is about."""

from __future__ import annotations

import pytest
import torch

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def since(version: tuple[int, int], reason: str) -> pytest.MarkDecorator:
    """Run a test on this version of torch and later ones; says what is lacking before."""
    return pytest.mark.skipif(version > TORCH, reason=f"torch of then: {reason}")
