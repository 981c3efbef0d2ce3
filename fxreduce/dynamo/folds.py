"""Folded weights, kept for as long as the weights that they were folded from stay what they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from ctypes import Array, c_char
from operator import attrgetter
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
T = TypeVar("T")
# A fold pays when it serves so many calls. After so many in a row that did not, weights are folded
# only when they have stayed what they are for as many calls.
CALLS_TO_PAY = 16
PATIENCE = 16
_version = attrgetter("_version")
_address = Tensor.data_ptr


class State:
    """What a set of weights was at some moment, without keeping it alive.

    Versions count what is done to tensors in place, addresses tell when `.data` is assigned. What
    is written *through* `.data` changes neither, and tensors made in inference mode have no
    version: these are compared by value, and others where that is asked for. Torch does not count
    how batch-norms move their statistics in train mode either, always both of them: variances in
    the memory of the host, where a look at values waits for no device, are compared by value, too.
    """

    def __init__(
        self, weights: Tensors, by_value: bool = False, variances: Sequence[int] = ()
    ) -> None:
        """`variances` are the places of those that batch-norms move."""
        # Of lists, which are made faster than tuples.
        self._identities = [*map(id, weights)]
        self._addresses = [*map(_address, weights)]
        near = [place for place in variances if weights[place].is_cpu]
        by_value = by_value or any(weight.is_inference() for weight in weights)
        by_value = by_value or not all(weights[place].is_contiguous() for place in near)
        self._copies = tuple(weight.clone() for weight in weights) if by_value else None
        self._versions = [] if by_value else [*map(_version, weights)]
        self._variances = () if by_value else tuple(near)
        self._memory = [_memory(weights[place]) for place in self._variances]
        self._moved = b"".join(self._memory)

    def holds(self, weights: Tensors) -> bool:
        """Whether the weights are the same ones still, with the same values."""
        return self.is_of([*map(id, weights)]) and self.is_current(weights)

    def is_of(self, identities: list[int]) -> bool:
        """Whether these are the identities of the weights."""
        return self._identities == identities

    def is_current(self, weights: Tensors) -> bool:
        """Whether the weights, which are the same ones, have the same values still."""
        if self._addresses != [*map(_address, weights)]:
            return False
        if self._copies is not None:
            return all(map(_same, self._copies, weights))
        if self._versions != [*map(_version, weights)]:
            return False
        # Where the addresses are what they were, so is the memory.
        return self._moved == b"".join(self._memory)

    def first_difference(self, weights: Tensors) -> int | None:
        """The place of the first weight that is not what it was, or None."""
        for place in range(len(weights)):
            if self._identities[place] != id(weights[place]) or (
                self._addresses[place] != weights[place].data_ptr()
            ):
                return place
            changed = (
                self._versions[place] != weights[place]._version
                if self._copies is None
                else not _same(self._copies[place], weights[place])
            )
            if changed:
                return place
        return None if self.holds(weights) else self._variances[0]


class _Fold(Generic[T]):
    """What the weights of one model fold to, and how many calls it has served.

    While it waits there are none, and it counts for how many calls the weights have stayed.
    """

    def __init__(self, state: State, folded: T | None, waits: bool) -> None:
        self.state = state
        self.folded = folded
        self.waits = waits
        self.calls = 0
        self.sources: list[weakref.ref[Tensor]] = []


class Folds(Generic[T]):
    """Folded weights by the identity of what they were folded from.

    There is one set for each living set of weights: that of dead or changed weights is dropped, so
    that memory is bounded by that of the models themselves. Threads may share it.
    """

    def __init__(
        self, fold: Callable[[Tensors], T | None], state: Callable[[Tensors], State]
    ) -> None:
        """`fold` returns None for weights with which the merged graph does not work."""
        self._fold = fold
        self._state = state
        self._folds: dict[tuple[int, ...], _Fold[T]] = {}
        self._last: _Fold[T] | None = None  # most models are called again and again
        self._lock = Lock()
        self._wasted = 0

    def __len__(self) -> int:
        return len(self._folds)

    def put(self, weights: Tensors, folded: T) -> None:
        """Keep what was folded from the weights before."""
        with self._lock:
            self._keep(weights, _Fold(self._state(weights), folded, waits=False))

    def get(self, weights: Tensors) -> T | None:
        """What the weights fold to as they are now; None where the unmerged graph shall run."""
        identities, found = [*map(id, weights)], self._last
        if found is None or not found.state.is_of(identities):
            found = self._last = self._folds.get(tuple(identities))
        if found is not None and found.state.is_current(weights):
            found.calls += 1
            if found.calls == CALLS_TO_PAY and not found.waits:
                self._wasted = 0
            if not found.waits or found.calls < CALLS_TO_PAY:
                return found.folded
        with self._lock:
            return self._again(weights)

    def _again(self, weights: Tensors) -> T | None:
        found = self._folds.get(tuple(map(id, weights)))
        rested = found is not None and found.state.is_current(weights)
        if found is not None and rested and not found.waits:  # another thread was faster
            return found.folded
        if found is not None:
            self._drop(tuple(map(id, weights)), found)
        # The state before folding: what is written meanwhile is seen by the next call.
        state, waits = self._state(weights), self._wasted >= PATIENCE and not rested
        folded = None if waits else self._fold(weights)
        self._keep(weights, _Fold(state, folded, waits))
        return folded

    def _keep(self, weights: Tensors, fold: _Fold[T]) -> None:
        identities = tuple(map(id, weights))
        this, one = weakref.ref(self), weakref.ref(fold)  # no cycles, which would outlive weights

        def drop(_: Any) -> None:
            folds, dead = this(), one()
            if folds is not None and dead is not None:
                folds._drop(identities, dead)

        fold.sources = [weakref.ref(weight, drop) for weight in weights]
        self._folds[identities] = fold

    def _drop(self, identities: tuple[int, ...], fold: _Fold[T]) -> None:
        """Give up a fold whose weights have changed or died."""
        if self._last is fold:
            self._last = None
        if self._folds.get(identities) is fold:
            del self._folds[identities]
            self._wasted += fold.calls < CALLS_TO_PAY and not fold.waits


def _memory(weight: Tensor) -> Array[c_char]:
    """The memory of a tensor of the host: a view, which lives no longer than the tensor's own."""
    return (c_char * weight.nbytes).from_address(weight.data_ptr())


def _same(copy: Tensor, weight: Tensor | None) -> bool:
    return weight is not None and copy.shape == weight.shape and torch.equal(copy, weight)
