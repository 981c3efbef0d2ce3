"""A plan: which rectifiers go, in which order, and what takes their place."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxreduce.calibration.batches import device_of
from fxreduce.dynamo.backend import Backend
from fxreduce.errors import CaptureError, PlanError, first_line
from fxreduce.graph.capture import Model, as_module, capture
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.signature import Arguments
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.passes.pipeline import as_disabled
from fxreduce.passes.refit import Refit
from fxreduce.planning.example import InputSpec, TensorSpec, learn_shapes
from fxreduce.planning.execute import Decisions, execute
from fxreduce.planning.fingerprint import (
    Fingerprint,
    digest,
    digest_of,
    fingerprint,
    require_same,
)
from fxreduce.planning.plan_file import read_weights, require_whole, write_plan
from fxreduce.planning.regions import Region
from fxreduce.planning.removal import NOT_FITTED, PlannedRemoval
from fxreduce.report.trial import Trial
from fxreduce.versions import versions_differ

SCHEMA = 3


@dataclass(frozen=True)
class Step:
    """One removal: the site, its entropy in bits and its importance when it was chosen.

    `unjudged` says why the importance's own rule did not judge the site, where it did not.
    """

    site: str
    entropy: float
    importance: float
    unjudged: str | None = None


@dataclass(frozen=True)
class Plan:
    """Which rectifiers go, in which order, and why.

    Attributes:
        steps: the removals, in order.
        regions: the removed sites, grouped by the affine region that their removal joins.
        compensate: "identity", "channel" or "refit".
        maps: the affine map that takes each site's place, unless that is the identity.
        cropped: the values of convolutions that are merged approximately, see
            `fxreduce.passes.crop_kernels`.
        weights: for "refit", the fitted weights of operators, see `fxreduce.passes.refit.Refit`.
        reads: the value that each fitted operator reads, by name.
        maps_replaced: whether the fitted weights make up for the maps, which then serve only where
            the weights do not.
        fitted_to: a hash of the model's weights, which alone the fitted weights go with.
        stopped: why planning ended.
        entropies: the entropy in bits of every site when it was last measured.
        importances: the importance of every site that might go, when it was last ranked.
        trials: what the budget measured of the models that were tried.
        refusals: sites that could not be removed, with the reasons.
        architecture: what a model must be for the plan to fit.
        inputs: the shapes and dtypes of a batch, from which checks make inputs of their own; None
            where a forward of the user's own takes batches apart.
        cost: decides which exact merges pay.
    """

    steps: tuple[Step, ...]
    regions: tuple[Region, ...]
    compensate: str
    stopped: str
    entropies: Mapping[str, float]
    architecture: Fingerprint
    cost: CostModel
    maps: Mapping[str, ScaleShift] = field(default_factory=dict, repr=False)
    cropped: tuple[str, ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    reads: Mapping[str, str] = field(default_factory=dict, repr=False)
    maps_replaced: bool = False
    fitted_to: str = ""
    importances: Mapping[str, float] = field(default_factory=dict, repr=False)
    trials: tuple[Trial, ...] = ()
    refusals: tuple[RefusedRewrite, ...] = ()
    inputs: InputSpec | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the removed sites, in order of removal."""
        return tuple(step.site for step in self.steps)

    @property
    def digest(self) -> str:
        """A hash of all that decides what the plan makes of a model, bit for bit."""
        maps = {
            f"{key} {name}": tensor
            for name, each in self.maps.items()
            for key, tensor in (("scale", each.scale), ("shift", each.shift))
        }
        rest = (self.steps, self.regions, self.cropped, dict(self.reads), self.maps_replaced)
        fits = digest_of((maps | dict(self.weights)).items())
        return sha256(f"{rest} {self.fitted_to} {fits}".encode()).hexdigest()

    @property
    def decisions(self) -> Decisions:
        """The plan as what `execute` carries out."""
        lines = [
            f"{step.site} removed at {step.entropy:.4f} bits"
            + ("" if step.importance == step.entropy else f", importance {step.importance:.4g}")
            + (f"; ranked last: {step.unjudged}" if step.unjudged else "")
            for step in self.steps
        ]
        lines.append(f"stopped: {self.stopped}")
        return Decisions(
            self.cost,
            self.sites,
            {} if self.maps_replaced else self.maps,
            self.cropped,
            self.weights,
            self.reads,
            self.entropies,
            tuple(lines),
            self.refusals,
            self.importances,
            self.trials,
        )

    def apply(
        self, model: Model, *, verify: bool = True, disable: str | Collection[str] = ()
    ) -> GraphModule:
        """The model without the plan's rectifiers, merged; the model is unchanged.

        Args:
            model: of the architecture that the plan was made for; its weights may be new.
            verify: check every merge, on random inputs of the shapes that the plan was made with.
            disable: names of passes to skip.

        Raises:
            PlanError: the model is of another architecture; the first difference is named.
            UnsupportedError: `disable` names what is no pass.
            EquivalenceError: a merge changed what the unmerged graph computes.
        """
        disabled = as_disabled(disable)
        graph_module = self._capture(model)
        require_same(self.architecture, fingerprint(graph_module))
        example = None
        if self.inputs is not None:
            random = self.inputs.example(device_of(graph_module))
            example = learn_shapes(graph_module, random.batch, random.forward)
        decisions = self.decisions
        if self.weights and digest(graph_module) != self.fitted_to:
            refusal = RefusedRewrite("the whole graph", NOT_FITTED, Refit.name)
            refusals = (*decisions.refusals, refusal)
            decisions = replace(
                decisions, maps=self.maps, cropped=(), weights={}, refusals=refusals
            )
        return execute(graph_module, decisions, example=example, verify=verify, disable=disabled)

    def _capture(self, model: Model) -> GraphModule:
        """Capture the model as the planned one was, which may take example inputs."""
        if self.inputs is None:
            return capture(model)
        random = self.inputs.example(device_of(as_module(model)))
        try:
            return capture(model, Arguments(*random.batch))
        except CaptureError:  # another architecture, whose first difference is told then
            return capture(model)

    def backend(
        self,
        inner: str | Callable[..., Any] = "inductor",
        *,
        disable: str | Collection[str] = (),
        freeze: bool = False,
        by_value: bool = False,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Backend:
        """A backend for torch.compile that removes the plan's rectifiers, then merges.

        A graph of another architecture, as graph breaks leave parts of the model, keeps all its
        rectifiers; a warning names the first difference. Fitted weights serve models whose weights
        are those that they were fitted to. For others, and where a graph merges in another way than
        the plan's, the affine maps of the sites serve instead, and a warning says so.

        Args:
            inner, disable, freeze, by_value, mode, options: see `fxreduce.backend`.
        """
        return Backend.of(
            inner,
            cost=self.cost,
            disable=disable,
            freeze=freeze,
            by_value=by_value,
            mode=mode,
            options=options,
            removal=self.removal,
        )

    @property
    def removal(self) -> PlannedRemoval:
        """The plan as what graphs of torch.compile are reduced by."""
        return PlannedRemoval.of(self.decisions, self.maps, self.architecture, self.fitted_to)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as JSON, atomically; fitted weights go to a safetensors file beside it.

        That is named after the plan and its own content, `plan-0123456789ab.safetensors`, so that a
        plan is never read with the weights of another.

        Raises:
            PlanError: a file cannot be written, or the cost model has no name to be found by.
        """
        as_cost(self.cost.name)
        content = asdict(replace(self, weights={})) | {
            "schema": SCHEMA,
            "steps": [
                asdict(step) | {"importance": _number(step.importance)} for step in self.steps
            ],
            "importances": {name: _number(value) for name, value in self.importances.items()},
            "cost": self.cost.name,
            "maps": {
                name: {"scale": m.scale.tolist(), "shift": m.shift.tolist(), "rank": m.rank}
                for name, m in self.maps.items()
            },
        }
        try:
            write_plan(Path(path), content, self.weights)
        except OSError as error:
            raise PlanError(f"the plan cannot be written to {path}: {error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: there is no such file, or it holds no plan of this version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"the plan cannot be read: {error}") from error
        except ValueError as error:
            raise PlanError(f"{path} holds no plan: it is not JSON ({error})") from error
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != SCHEMA:
            raise PlanError(
                f'{path} holds no plan of this version: a plan has "schema": {SCHEMA}, this file '
                f"has {schema!r}. Make it again with fxreduce.analyze(...).plan(...)"
            )
        try:
            plan = cls(**_decode(content))
            name, version = content["weights"], content["torch"]
            require_whole(Path(path), content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"{path} is a damaged plan: {first_line(error)}. Make it again with "
                "fxreduce.analyze(...).plan(...)"
            ) from error
        if (difference := versions_differ(version)) is not None:
            warn(f"{path}: {difference}", stacklevel=2)
        return plan if name is None else replace(plan, weights=read_weights(Path(path), name))


class PlanInterrupted(KeyboardInterrupt):
    """Ctrl-C ended planning, and something had been removed that the budget allows.

    Attributes:
        plan: the best so far; it can be applied and saved like any other.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(
            f"planning was interrupted; the exception's plan has the removals so far: "
            f"{', '.join(plan.sites)}"
        )
        self.plan = plan


def _number(value: float) -> float | str:
    """The number as JSON has it, which knows no infinity: that is "inf" or "-inf"."""
    return value if isfinite(value) else str(value)


def _decode(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan from its JSON."""
    inputs = content["inputs"]
    return {
        "steps": tuple(
            Step(**{**step, "importance": float(step["importance"])}) for step in content["steps"]
        ),
        "regions": tuple(tuple(region) for region in content["regions"]),
        "compensate": content["compensate"],
        "reads": content["reads"],
        "maps_replaced": content["maps_replaced"],
        "cropped": tuple(content["cropped"]),
        "fitted_to": content["fitted_to"],
        "stopped": content["stopped"],
        "entropies": content["entropies"],
        "importances": {n: float(value) for n, value in content.get("importances", {}).items()},
        "trials": tuple(Trial(**trial) for trial in content.get("trials", ())),
        "architecture": tuple(content["architecture"]),
        "cost": as_cost(content["cost"]),
        "maps": {
            name: ScaleShift(_vector(m["scale"]), _vector(m["shift"]), m["rank"])
            for name, m in content["maps"].items()
        },
        "refusals": tuple(RefusedRewrite(**refusal) for refusal in content["refusals"]),
        "inputs": None
        if inputs is None
        else InputSpec(
            tuple(_spec(spec) for spec in inputs["args"]),
            {name: _spec(spec) for name, spec in inputs["kwargs"].items()},
        ),
    }


def _spec(content: dict[str, Any]) -> TensorSpec:
    low, high = (content.get(name, 0) for name in ("low", "high"))
    return TensorSpec(tuple(content["shape"]), content["dtype"], low, high)


def _vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
