"""A plan: which rectifiers go, in which order, and what takes their place."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxreduce.dynamo.backend import Backend
from fxreduce.errors import PlanError, first_line
from fxreduce.files import write_atomically
from fxreduce.graph.capture import Model, capture
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.planning.example import InputSpec, TensorSpec, learn_shapes
from fxreduce.planning.execute import Decisions, execute
from fxreduce.planning.fingerprint import Fingerprint, fingerprint, require_same
from fxreduce.planning.regions import Region
from fxreduce.planning.removal import PlannedRemoval

SCHEMA = 1


@dataclass(frozen=True)
class Step:
    """One removal: the site, its entropy in bits and its importance when it was chosen."""

    site: str
    entropy: float
    importance: float


@dataclass(frozen=True)
class Plan:
    """Which rectifiers go, in which order, and why.

    Attributes:
        steps: the removals, in order.
        regions: the removed sites, grouped by the affine region that their removal joins.
        compensate: "identity" or "channel".
        maps: for "channel", the affine map that takes each site's place.
        stopped: why planning ended.
        entropies: the entropy in bits of every site when it was last measured.
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
    refusals: tuple[RefusedRewrite, ...] = ()
    inputs: InputSpec | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the removed sites, in order of removal."""
        return tuple(step.site for step in self.steps)

    @property
    def decisions(self) -> Decisions:
        """The plan as what `execute` carries out."""
        lines = [
            f"{step.site} removed at {step.entropy:.4f} bits"
            + ("" if step.importance == step.entropy else f", importance {step.importance:.4g}")
            for step in self.steps
        ]
        lines.append(f"stopped: {self.stopped}")
        return Decisions(
            self.cost, self.sites, self.maps, self.entropies, tuple(lines), self.refusals
        )

    def apply(self, model: Model, *, verify: bool = True) -> GraphModule:
        """The model without the plan's rectifiers, merged; the model is unchanged.

        Args:
            model: of the architecture that the plan was made for; its weights may be new.
            verify: check every merge, on random inputs of the shapes that the plan was made with.

        Raises:
            PlanError: the model is of another architecture; the first difference is named.
            EquivalenceError: a merge changed what the unmerged graph computes.
        """
        graph_module = capture(model)
        require_same(self.architecture, fingerprint(graph_module))
        example = None
        if self.inputs is not None:
            parameter = next(graph_module.parameters(), None)
            random = self.inputs.example(None if parameter is None else parameter.device)
            example = learn_shapes(graph_module, random.batch, random.forward)
        return execute(graph_module, self.decisions, example=example, verify=verify)

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
        rectifiers; a warning names the first difference.

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
            removal=PlannedRemoval.of(self.sites, self.maps, self.architecture),
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as JSON, atomically.

        Raises:
            PlanError: the file cannot be written, or the cost model has no name to be found by.
        """
        as_cost(self.cost.name)
        content = asdict(self) | {
            "schema": SCHEMA,
            "cost": self.cost.name,
            "maps": {
                name: {"scale": m.scale.tolist(), "shift": m.shift.tolist(), "rank": m.rank}
                for name, m in self.maps.items()
            },
        }
        text = json.dumps(content, indent=1)
        try:
            write_atomically(Path(path), lambda temporary: _write(temporary, text))
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
            return cls(**_decode(content))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"{path} is a damaged plan: {first_line(error)}. Make it again with "
                "fxreduce.analyze(...).plan(...)"
            ) from error


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _decode(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan from its JSON."""
    inputs = content["inputs"]
    return {
        "steps": tuple(Step(**step) for step in content["steps"]),
        "regions": tuple(tuple(region) for region in content["regions"]),
        "compensate": content["compensate"],
        "stopped": content["stopped"],
        "entropies": content["entropies"],
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
    return TensorSpec(tuple(content["shape"]), content["dtype"])


def _vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
