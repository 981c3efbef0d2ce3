"""Progress of long work: a bar when a person is watching, nothing otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, *, total: int | None, progress: bool | None
) -> Iterator[T]:
    """The items, with a bar on stderr while they are consumed, and an estimate of the time left.

    Args:
        progress: True and False show and hide it; None shows it when stderr is a terminal. It is
            drawn by tqdm; where that is not installed there is none.
    """
    bar = _bar(progress)
    if bar is None:
        yield from items
        return
    yield from bar(items, desc=description, total=total, leave=False, file=sys.stderr)


@contextmanager
def counting(
    description: str, *, total: int | None, progress: bool | None
) -> Iterator[Callable[[int], object]]:
    """A bar for what is not iterated over; what it gives is called with the steps that are done."""
    bar = _bar(progress)
    if bar is None:
        yield lambda done: None  # noqa: ARG005
        return
    with bar(desc=description, total=total, leave=False, file=sys.stderr) as shown:
        yield shown.update


def _bar(progress: bool | None) -> Callable[..., Any] | None:
    """tqdm's bar, if it is wanted and installed."""
    if not (sys.stderr.isatty() if progress is None else progress):
        return None
    try:
        bar: Callable[..., Any] = import_module("tqdm").tqdm
    except ImportError:
        return None
    return bar
