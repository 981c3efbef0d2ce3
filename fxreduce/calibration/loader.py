"""Reading a calibration loader: once where once is enough, again where that is possible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from fxreduce.calibration.ranks import Ranks
from fxreduce.calibration.shares import are_alike, is_parted, one_for_all
from fxreduce.errors import CalibrationError


class Loader:
    """Batches that can be looked at before they are iterated, without reading them twice.

    Args:
        batches: what the user gave. An iterator can be read only once.
        keep: whether an iterator's batches are kept, so that they can be read again.

    Attributes:
        dealt: whether all ranks read the same batches, of which each is to run its share.
    """

    def __init__(self, batches: Iterable[Any], *, keep: bool) -> None:
        if isinstance(batches, (Tensor, Mapping, str)) or not _iterable(batches):
            raise CalibrationError(
                "the calibration loader must be an iterable of batches; seen: "
                f"{type(batches).__name__}. A single batch goes into a list: [batch]"
            )
        self._once = isinstance(batches, Iterator)
        self._batches = list(batches) if self._once and keep else batches
        self._once = self._once and not keep
        self._opened: Iterator[Any] | None = None
        self._shared: Any = None  # the ranks' first batch, where they have parts of their own
        self.dealt = False

    def share(self, ranks: Ranks) -> None:
        """Find out what the ranks read, before any batch is read.

        Where all have the same first batch and length, they read the same batches, and these are
        dealt. Otherwise, and where a loader has a DistributedSampler, each has a part of its own;
        then `first` is the same batch on all ranks.

        Raises:
            CalibrationError: no rank has a batch.
        """
        if ranks.size == 1:
            return
        own = self._peek()
        self.dealt = are_alike(ranks, own, self.length(), is_parted(self._batches))
        if not self.dealt:
            self._shared = one_for_all(ranks, own)

    def first(self) -> Any:
        """The first batch; the next iteration begins with it and goes on from there.

        Raises:
            CalibrationError: there is none.
        """
        if (batch := self._peek() if self._shared is None else self._shared) is not None:
            return batch
        raise CalibrationError(
            "calibration needs at least one batch; the loader yielded none. Pass a loader, a list "
            "of batches or any iterable of them that is not exhausted"
        )

    def _peek(self) -> Any:
        """The first batch of the next iteration, None where there is none."""
        iterator = iter(self)
        for batch in iterator:
            self._opened = chain([batch], iterator)
            return batch
        return None

    def __iter__(self) -> Iterator[Any]:
        if self._opened is not None:
            opened, self._opened = self._opened, None
            return opened
        if self._once:
            # Nothing is kept of an iterator, so that a second reading would find it empty.
            opened, self._batches = iter(self._batches), _Exhausted()
            return opened
        return iter(self._batches)

    def length(self) -> int | None:
        """How many batches there are, where the loader knows."""
        try:
            return len(self._batches)  # type: ignore[arg-type]
        except TypeError:
            return None

    def count(self) -> int:
        """How many batches there are; a loader that does not know is read."""
        known = self.length()
        return sum(1 for _ in self) if known is None else known


class _Exhausted:
    """An iterator that was read to its end."""

    def __iter__(self) -> Iterator[Any]:
        raise CalibrationError(
            "planning reads the calibration data several times, and the loader was an iterator "
            "that has been read. Pass a list of batches or a DataLoader"
        )


def _iterable(batches: object) -> bool:
    return hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
