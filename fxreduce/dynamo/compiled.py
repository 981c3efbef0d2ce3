"""What torch.compile calls instead of a graph: the merged graph, given the folded weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxreduce.dynamo.folds import Folds, State
from fxreduce.dynamo.inner import Inner
from fxreduce.dynamo.numbers import NumberInput, are_same
from fxreduce.dynamo.weights import WeightInput
from fxreduce.errors import WeightsChangedError

Run = Callable[..., Any]
Take = Callable[[Sequence[Any]], tuple[Any, ...]]


def take(places: Sequence[int]) -> Take:
    """A function that takes the values at some places of a sequence."""
    return lambda values: tuple([values[place] for place in places])


class Folding:
    """Runs the merged graph on weights folded from the call's own arguments."""

    def __init__(
        self,
        run: Run,
        inputs: Take,
        weights: Take,
        numbers: Sequence[NumberInput],
        folds: Folds,
        unmerged: Run,
    ) -> None:
        """`inputs` and `weights` take their part of the arguments that the original graph takes."""
        self._run = run
        self._inputs = inputs
        self._weights = weights
        self._numbers = numbers
        self._folds = folds
        self._unmerged = unmerged

    def __call__(self, *args: Any) -> Any:
        folded = self._folds.get(self._weights(args))
        if folded is None or not are_same(self._numbers, args):
            return self._unmerged(*args)
        return self._run(*self._inputs(args), *folded)


class Frozen:
    """Runs a graph in which the weights are constants, and guards that they are.

    Raises:
        WeightsChangedError: when it is called with other weights, or changed ones.
    """

    def __init__(
        self,
        run: Run,
        inputs: Take,
        weights: Sequence[WeightInput],
        numbers: Sequence[NumberInput],
        state: State,
    ) -> None:
        self._run = run
        self._inputs = inputs
        self._weights = take([weight.index for weight in weights])
        self._paths = [weight.path for weight in weights]
        self._numbers = numbers
        self._state = state

    def __call__(self, *args: Any) -> Any:
        weights: tuple[Tensor, ...] = self._weights(args)
        if not self._state.holds(weights) or not are_same(self._numbers, args):
            self._refuse(weights)
        return self._run(*self._inputs(args))

    def _refuse(self, weights: tuple[Tensor, ...]) -> None:
        place = self._state.first_difference(weights)
        name = "the eps of a norm" if place is None else self._paths[place]
        raise WeightsChangedError(
            f"freeze=True promises that weights stay what they are; seen: {name} is another one "
            "or has been written since the model was compiled. Compile without freeze, or call "
            "torch._dynamo.reset() and compile again"
        )


class Unmerged:
    """The original graph, compiled when it is first called."""

    def __init__(self, graph_module: GraphModule, inner: Inner) -> None:
        self._graph_module = graph_module
        self._inner = inner
        self._run: Run | None = None
        self._lock = Lock()

    def __call__(self, *args: Any) -> Any:
        if self._run is None:
            with self._lock:
                # Shapes may be others than when the merged graph was compiled: torch.compile knows.
                # It does not compile the forward of a graph module of its own: hence a function.
                graph_module = self._graph_module
                self._run = torch.compile(
                    lambda *given: graph_module(*given), backend=self._inner.compile
                )
        return self._run(*args)
