"""Hypothesis profiles, and what every test starts from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# `ci` tries the same examples everywhere; `make fuzz` looks for new ones.
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("fuzz", max_examples=3000, **_COMMON)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Every test draws the same random numbers, whichever ran before, and leaves the defaults."""
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors: threads only get in each other's way, above all under pytest-xdist."""
    torch.set_num_threads(1)
