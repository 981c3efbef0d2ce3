"""The backend object that torch.compile is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule

from fxreduce.dynamo.compile import compile_merged
from fxreduce.dynamo.inner import Inner, Run
from fxreduce.dynamo.reduction import Profile, Removal
from fxreduce.errors import UnsupportedError
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.passes.pipeline import as_disabled

OPTIONS = ("inner", "cost", "disable", "freeze", "by_value", "options")


@dataclass(frozen=True)
class Backend:
    """A backend of torch.compile: merges every graph, and gives it to another backend.

    Equal backends share what torch.compile has compiled.

    Attributes:
        inner: compiles the merged graphs.
        cost: decides which exact merges pay.
        disable: names of passes that are skipped.
        freeze: whether weights become constants.
        by_value: whether weights are compared by value at every call.
        removal: which rectifiers are removed before.
        profile: decides which are, once a graph has been observed.
    """

    inner: Inner
    cost: CostModel
    disable: frozenset[str] = frozenset()
    freeze: bool = False
    by_value: bool = False
    removal: Removal | None = field(default=None, repr=False)
    profile: Profile | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        inner: str | Run = "inductor",
        *,
        cost: str | CostModel = "flops",
        disable: str | Collection[str] = (),
        freeze: bool = False,
        by_value: bool = False,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
        removal: Removal | None = None,
        profile: Profile | None = None,
    ) -> Backend:
        """A backend with its options checked; see `fxreduce.backend`."""
        for name, value in (("freeze", freeze), ("by_value", by_value)):
            if not isinstance(value, bool):
                raise UnsupportedError(f"{name} is True or False; seen: {value!r}")
        if freeze and profile is not None:
            raise UnsupportedError(
                "freeze=True compiles weights in, calibrate observes them first; seen: both. Leave "
                "one of them out"
            )
        return cls(
            Inner.of(inner, mode, options),
            as_cost(cost),
            as_disabled(disable),
            freeze,
            by_value,
            removal,
            profile,
        )

    def __hash__(self) -> int:
        """Of what can be hashed for certain: options and cost models may be the user's own."""
        return hash((self.inner.backend, self.cost.name, self.disable, self.freeze, self.by_value))

    def __call__(
        self,
        graph_module: GraphModule,
        example_inputs: Sequence[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Run:
        """Compile a graph of torch.compile.

        Args:
            graph_module, example_inputs: the graph and the values of its placeholders.
            mode: of the inner backend.
            options: what `fxreduce.backend` takes, by name; they take the place of its own.

        Raises:
            UnsupportedError: an option is not known.
        """
        configured = self._with(mode, options or {})
        return compile_merged(
            graph_module,
            example_inputs,
            backend=self,
            inner=configured.inner,
            cost=configured.cost,
            disable=configured.disable,
            removal=configured.removal,
            profile=configured.profile,
            freeze=configured.freeze,
            by_value=configured.by_value,
        )

    def _with(self, mode: str | None, options: Mapping[str, Any]) -> Backend:
        if unknown := sorted(map(repr, set(options).difference(OPTIONS))):
            raise UnsupportedError(
                f"the options of fxreduce are {', '.join(OPTIONS)}, those of the inner backend go "
                f"under 'options'; seen: {', '.join(unknown)}"
            )
        if mode is None and not options:
            return self
        own: dict[str, Any] = {
            "inner": self.inner.backend,
            "cost": self.cost,
            "disable": self.disable,
            "freeze": self.freeze,
            "by_value": self.by_value,
            "mode": self.inner.mode if mode is None else mode,
            "options": dict(self.inner.options),
            "removal": self.removal,
            "profile": self.profile,
        }
        return Backend.of(**{**own, **options})
