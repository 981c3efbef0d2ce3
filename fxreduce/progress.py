"""Progress of long work: a bar when a person is watching, nothing otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, *, total: int | None, progress: bool | None
) -> Iterator[T]:
    """The items, with a bar on stderr while they are consumed.

    Args:
        progress: True and False show and hide it; None shows it when stderr is a terminal. It is
            drawn by tqdm; where that is not installed there is none.
    """
    wanted = sys.stderr.isatty() if progress is None else progress
    if not wanted:
        yield from items
        return
    try:
        bar = import_module("tqdm").tqdm
    except ImportError:
        yield from items
        return
    yield from bar(items, desc=description, total=total, leave=False, file=sys.stderr)
