"""Every test starts with nothing compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import _dynamo

from tests.backend.compiling import Inner


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    _dynamo.reset()
    yield
    _dynamo.reset()


@pytest.fixture(params=["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.zoo)])
def inner(request: pytest.FixtureRequest) -> Inner:
    """An inner backend that counts: without AOTAutograd, with it, and the one that is used."""
    return Inner(request.param)


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield
