"""What was done with the graphs of torch.compile, for as long as they are there."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from itertools import count
from typing import Any

from torch import Tensor

from fxreduce.report.report import Report

_NUMBERS = count()


class Record:
    """What was done with one graph for one model.

    Attributes:
        backend: whose graph it is.
        report: what was done with it; it may become another one.
    """

    def __init__(self, backend: Any, weights: Sequence[Tensor], report: Report) -> None:
        """`weights` are those of the model, which are not kept alive."""
        self.backend = backend
        self.report = report
        self._number = next(_NUMBERS)
        self._weights = tuple(map(weakref.ref, weights))
        _RECORDS.add(self)

    @property
    def weights(self) -> tuple[int, ...]:
        """The identities of the weights that are alive."""
        return tuple(id(weight) for ref in self._weights if (weight := ref()) is not None)


_RECORDS: weakref.WeakSet[Record] = weakref.WeakSet()


def find_records(backend: Any = None, weights: Collection[int] | None = None) -> list[Record]:
    """The records of a backend, and of models with some of these weights, in order."""
    found = [
        record
        for record in list(_RECORDS)
        if (backend is None or record.backend == backend)
        and (weights is None or any(each in weights for each in record.weights))
    ]
    return sorted(found, key=lambda record: record._number)
