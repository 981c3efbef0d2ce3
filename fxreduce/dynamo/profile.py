"""A graph that is observed at first, and reduced then."""

from __future__ import annotations

import logging
import warnings
import weakref
from dataclasses import replace
from threading import Lock
from typing import Any

import torch

from fxreduce.dynamo.folds import Tensors
from fxreduce.dynamo.inner import Run
from fxreduce.dynamo.records import Record
from fxreduce.dynamo.reduction import Profile, Removal
from fxreduce.dynamo.source import Source
from fxreduce.errors import FxReduceError, first_line
from fxreduce.graph.shapes import copied

log = logging.getLogger("fxreduce")


class _Decided:
    """What was decided for a model, which its graphs at other sizes carry out as well."""

    def __init__(self, profile: Profile, removal: Removal | None) -> None:
        self.profile = profile
        self.removal = removal


# By code and weights. Models hold what was decided for them, so that it goes with the weights.
_DECIDED: weakref.WeakValueDictionary[tuple[Any, ...], _Decided] = weakref.WeakValueDictionary()


class _Model:
    """One set of weights: what the graph was called with until it is decided, then what runs."""

    def __init__(self, record: Record) -> None:
        self.record: Record | None = record
        self.calls: list[tuple[Any, ...]] = []
        self.busy = False
        self.decided: _Decided | None = None
        self.run: Run | None = None
        self.sources: list[weakref.ref[torch.Tensor]] = []

    def tell(self, line: str) -> None:
        """Have the report say what is going on."""
        if self.record is not None:
            self.record.report = replace(self.record.report, decisions=(line,))


class Profiled:
    """Runs a graph as it is and keeps copies of its inputs, until there are enough to decide.

    It does so for each living set of weights. The call that makes them enough decides and merges,
    and returns what the unmodified graph computes, as those before it; meanwhile other threads run
    the unmodified graph. Where nothing can be decided the graph is merged with all its rectifiers.
    """

    def __init__(self, source: Source, profile: Profile) -> None:
        self._source = source
        self._profile = profile
        self._models: dict[tuple[int, ...], _Model] = {}
        self._lock = Lock()

    def __call__(self, *args: Any) -> Any:
        weights: Tensors = self._source.take_weights(args)
        model = self._models.get(tuple(map(id, weights))) or self._meet(weights)
        if model.run is None and not self._follow(model, weights):
            return self._observe(model, weights, args)
        assert model.run is not None
        return model.run(*args)

    def _follow(self, model: _Model, weights: Tensors) -> bool:
        """Carry out what was decided for another graph of the model, at other sizes, if so."""
        with self._lock:
            decided = None if model.busy else _DECIDED.get(self._key(weights))
            if decided is None or decided.profile != self._profile:
                return False
            model.busy = True
        self._settle(model, weights, decided)
        return True

    def _observe(self, model: _Model, weights: Tensors, args: tuple[Any, ...]) -> Any:
        with torch.inference_mode(False):
            call = copied(self._source.take_inputs(args))  # as the graph may overwrite them
        outputs = self._source.graph_module(*args)
        with self._lock:
            if model.busy:  # another thread decides
                return outputs
            model.calls.append(call)
            seen = len(model.calls)
            model.busy = seen == self._profile.calls
            model.tell(f"{seen} of {self._profile.calls} calls observed")
        if seen == self._profile.calls:
            try:
                decided = _Decided(self._profile, self._removal(model, weights))
                _DECIDED[self._key(weights)] = decided
                self._settle(model, weights, decided)
            except BaseException:  # interrupted: the next calls are observed instead
                model.calls, model.busy = [], False
                raise
        return outputs

    def _settle(self, model: _Model, weights: Tensors, decided: _Decided) -> None:
        model.run = self._source.build(decided.removal, weights)
        model.decided, model.calls, model.record = decided, [], None

    def _removal(self, model: _Model, weights: Tensors) -> Removal | None:
        try:
            return self._source.decide(self._profile, weights, model.calls)
        except FxReduceError as error:
            reason = str(error)
        except Exception as error:  # of the user's own budget or importance
            log.info("no plan could be made", exc_info=True)
            reason = f"{type(error).__name__}: {first_line(error)}"
        message = f"a graph of torch.compile runs with all its rectifiers: {reason}"
        warnings.warn(message, stacklevel=2)
        return None

    def _key(self, weights: Tensors) -> tuple[Any, ...]:
        return (self._source.key, *map(id, weights))

    def _meet(self, weights: Tensors) -> _Model:
        """A model that is new to this graph."""
        identities = tuple(map(id, weights))
        with self._lock:
            if identities in self._models:  # another thread was faster
                return self._models[identities]
            model = _Model(self._source.untouched(weights))
            this, one = weakref.ref(self), weakref.ref(model)  # no cycles, which outlive weights

            def drop(_: Any) -> None:
                profiled, dead = this(), one()
                if profiled is None or dead is None:
                    return
                if profiled._models.get(identities) is dead:
                    del profiled._models[identities]

            model.sources = [weakref.ref(weight, drop) for weight in weights]
            self._models[identities] = model
        return model
