"""Hypothesis profiles, and what every test starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.extras import lacked, missing
from tests.versions import TORCH

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
# `ci` tries the same examples everywhere; `make fuzz` looks for new ones.
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("fuzz", max_examples=3000, **_COMMON)
settings.load_profile("ci")


_LEFT_OUT: dict[str, list[str]] = {}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out test modules that need a package which is not installed; the summary says which."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    packages = missing(collection_path)
    if packages:
        _LEFT_OUT[collection_path.name] = packages
    return True if packages else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    yield from _skipped_without_extras()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    yield from _skipped_without_extras()


def _skipped_without_extras() -> Iterator[None]:
    """Skip a test that ends in the lack of an optional package; with all installed none does."""
    try:
        yield
    except Exception as error:
        if (package := lacked(error)) is None:
            raise
        pytest.skip(f"needs {package}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, packages in sorted(_LEFT_OUT.items()):
        terminalreporter.write_line(f"LEFT OUT {name}: needs {', '.join(packages)}")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Every test draws the same random numbers, whichever ran before, and leaves the defaults."""
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    if TORCH < (2, 9):
        torch._dynamo.reset()  # it counts the exports of a class, and refuses the ninth
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors: threads only get in each other's way, above all under pytest-xdist."""
    torch.set_num_threads(1)
