"""The merged graphs that a graph of torch.compile becomes: one, or several for several weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import itemgetter
from threading import Lock
from typing import Any, NamedTuple

from torch import Tensor

from fxreduce.dynamo.inner import Inner, Run
from fxreduce.dynamo.late import Late
from fxreduce.dynamo.lift import Lifted
from fxreduce.dynamo.records import Record

log = logging.getLogger("fxreduce")
Take = Callable[[Sequence[Any]], tuple[Any, ...]]
# Merging depends on shapes alone, and on which weights a plan was fitted to.
MOST = 8


class Call(NamedTuple):
    """What a call runs: a merged graph on some of its inputs, and on folded weights."""

    run: Run
    inputs: Take
    folded: tuple[Tensor, ...]
    record: Record | None = None


class Variants:
    """Compiled graphs by their structure; those that come later are compiled when called."""

    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self._runs: dict[tuple[Any, ...], Run] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, lifted: Lifted, run: Run, record: Record | None = None) -> Call:
        """Use what was compiled for a merged graph."""
        self._runs[lifted.structure] = run
        return Call(run, take(lifted.inputs), lifted.folded, record)

    def call(self, lifted: Lifted, record: Record | None = None) -> Call | None:
        """How to run a merged graph; None where there are too many."""
        structure = lifted.structure
        with self._lock:
            run = self._runs.get(structure)
            if run is None:
                if len(self._runs) == MOST:
                    log.warning("weights merge in more than %d ways; others run unmerged", MOST)
                    return None
                run = self._runs[structure] = Late(lifted.graph_module, self._inner)
        return Call(run, take(lifted.inputs), lifted.folded, record)


def take(places: Sequence[int]) -> Take:
    """A function that takes the values at some places of a sequence."""
    runs = _runs(places)
    if len(runs) > 2:
        return itemgetter(*places)
    # Faster; the weights of most graphs are those before and behind the input.
    first, second = (*runs, slice(0), slice(0))[:2]
    return lambda values: (*values[first], *values[second])


def _runs(places: Sequence[int]) -> list[slice]:
    """Slices that together take the places."""
    runs: list[slice] = []
    for place in places:
        if runs and runs[-1].stop == place:
            runs[-1] = slice(runs[-1].start, place + 1)
        else:
            runs.append(slice(place, place + 1))
    return runs
