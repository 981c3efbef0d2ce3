"""What torch.compile calls instead of a graph: the merged graph, given the folded weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxreduce.dynamo.folds import Folds, State
from fxreduce.dynamo.inner import Run
from fxreduce.dynamo.numbers import NumberInput, are_same
from fxreduce.dynamo.records import Record
from fxreduce.dynamo.variants import Call, Take, take
from fxreduce.dynamo.weights import WeightInput
from fxreduce.errors import WeightsChangedError


class Untouched:
    """Runs what another backend made of the graph as it is, and keeps the record of it.

    Torch.compile does not keep functions themselves, but what they wrap.
    """

    __slots__ = ("_record", "_run")

    def __init__(self, run: Run, record: Record) -> None:
        self._run = run
        self._record = record

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)


class Folding:
    """Runs the merged graph on weights folded from the call's own arguments."""

    def __init__(
        self, weights: Take, numbers: Sequence[NumberInput], folds: Folds[Call], unmerged: Run
    ) -> None:
        """`weights` takes them from the arguments that the original graph takes."""
        self._weights = weights
        self._numbers = numbers
        self._folds = folds
        self._unmerged = unmerged

    def __call__(self, *args: Any) -> Any:
        call = self._folds.get(self._weights(args))
        if call is None or (self._numbers and not are_same(self._numbers, args)):
            return self._unmerged(*args)
        return call.run(*call.inputs(args), *call.folded)


class Frozen:
    """Runs a graph in which the weights are constants, and guards that they are.

    Raises:
        WeightsChangedError: when it is called with other weights, or changed ones.
    """

    def __init__(
        self,
        call: Call,
        weights: Sequence[WeightInput],
        numbers: Sequence[NumberInput],
        state: State,
    ) -> None:
        self._call = call
        self._weights = take([weight.index for weight in weights])
        self._paths = [weight.path for weight in weights]
        self._numbers = numbers
        self._state = state

    def __call__(self, *args: Any) -> Any:
        weights: tuple[Tensor, ...] = self._weights(args)
        if not self._state.holds(weights) or not are_same(self._numbers, args):
            self._refuse(weights)
        call = self._call
        return call.run(*call.inputs(args), *call.folded)

    def _refuse(self, weights: tuple[Tensor, ...]) -> None:
        place = self._state.first_difference(weights)
        name = "the eps of a norm" if place is None else self._paths[place]
        raise WeightsChangedError(
            f"freeze=True promises that weights stay what they are; seen: {name} is another one "
            "or has been written since the model was compiled. Compile without freeze, or call "
            "torch._dynamo.reset() and compile again"
        )
