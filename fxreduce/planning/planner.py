"""Making a plan: the least important site goes first, and all are measured again after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.errors import PlanError, UnsupportedError
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import PREPARE
from fxreduce.planning.budgets import Budget, Context, as_budget
from fxreduce.planning.example import Example, InputSpec
from fxreduce.planning.fingerprint import fingerprint
from fxreduce.planning.importance import Importance, as_importance
from fxreduce.planning.measure import measure
from fxreduce.planning.plan import Plan, Step
from fxreduce.planning.regions import regions

COMPENSATIONS = ("identity", "channel")
# One batch in five is held out, so that a budget is not judged on what the fit has seen.
HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Options:
    """How a plan is made; see `Analysis.plan`."""

    budget: Budget
    importance: Importance
    cost: CostModel
    compensate: str = "channel"
    entropy: str = "paper"
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    axes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        budget: int | float | str | Budget,
        importance: str | Importance,
        cost: str | CostModel,
        compensate: str,
        include: Sequence[str] | str | None,
        exclude: Sequence[str] | str | None,
        entropy: str = "paper",
        axes: Mapping[str, int] | None = None,
    ) -> Options:
        """Options from what a user may give for them."""
        return cls(
            budget=as_budget(budget),
            importance=as_importance(importance),
            cost=as_cost(cost),
            compensate=compensate,
            entropy=entropy,
            include=(include,) if isinstance(include, str) else include,
            exclude=(exclude,) if isinstance(exclude, str) else exclude,
            axes=axes or {},
        )

    def __post_init__(self) -> None:
        require_compensation(self.compensate)


def require_compensation(name: str) -> None:
    """Raise UnsupportedError unless fxreduce has a compensation of that name."""
    if name not in COMPENSATIONS:
        raise UnsupportedError(
            f"compensate is one of {', '.join(map(repr, COMPENSATIONS))}; seen: {name!r}"
        )


def make_plan(
    graph_module: GraphModule, calibration: Calibration, example: Example, options: Options
) -> Plan:
    """Remove the least important site as long as the budget allows, measuring after each removal.

    Args:
        graph_module: captured, its nodes knowing their shapes; unchanged.
        example: the batch that told the shapes.

    Raises:
        PlanError: the budget or a name does not fit the model.
    """
    current = run_pipeline(graph_module, PREPARE).graph_module
    names = [site.name for site in find_sites(current)]
    candidates = selected(names, options)
    calibration = hold_out(calibration)
    judge = options.budget.begin(
        Context(current, len(candidates), lambda module: _outputs(calibration, module))
    )
    entropies: dict[str, float] = {}
    steps: list[Step] = []
    maps: dict[str, ScaleShift] = {}
    refusals: list[RefusedRewrite] = []
    stopped = "no site is left"
    while candidates:
        if (reason := judge.enough(len(steps))) is not None:
            stopped = reason
            break
        measured = measure(
            current,
            calibration,
            entropy=options.entropy,
            moments=options.compensate == "channel",
            sites=candidates if entropies else names,
            axes=options.axes,
        ).sites
        entropies |= {name: site.entropy for name, site in measured.items()}
        chosen = min((measured[name] for name in candidates), key=options.importance)
        if (reason := judge.before(chosen)) is not None:
            stopped = reason
            break
        fit = {chosen.name: chosen.affine_fit()} if options.compensate == "channel" else {}
        trial = Linearise((chosen.name,), fit).run(current)
        candidates.remove(chosen.name)
        if trial.refusals:
            refusals.extend(trial.refusals)
            continue
        if (reason := judge.after(trial.graph_module)) is not None:
            stopped = f"without {chosen.name}, {reason}"
            break
        steps.append(Step(chosen.name, chosen.entropy, float(options.importance(chosen))))
        maps |= fit
        current = trial.graph_module
    return Plan(
        steps=tuple(steps),
        regions=regions(graph_module, [step.site for step in steps]),
        compensate=options.compensate,
        stopped=stopped,
        entropies=entropies,
        architecture=fingerprint(graph_module),
        cost=options.cost,
        maps=maps,
        refusals=tuple(refusals),
        inputs=InputSpec.of(example),
    )


def selected(names: Collection[str], options: Options) -> list[str]:
    """The sites that `include` and `exclude` leave, in order.

    Raises:
        PlanError: a pattern matches no site.
    """
    for option, patterns in (("include", options.include), ("exclude", options.exclude)):
        for pattern in patterns or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise PlanError(
                    f"{option} takes names of sites or globs over them; {pattern!r} matches none "
                    f"of {', '.join(list(names)[:8])}{', ...' if len(names) > 8 else ''}"
                )
    return [
        name
        for name in names
        if (options.include is None or _matches(name, options.include))
        and not _matches(name, options.exclude or ())
    ]


def hold_out(calibration: Calibration) -> Calibration:
    """The calibration with some of its batches held out; of a single one nothing can be."""
    batches = calibration.count()
    return replace(calibration, skip=min(batches, HELD_OUT_EVERY) if batches > 1 else 0)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _outputs(calibration: Calibration, module: nn.Module) -> list[Any]:
    """The module's outputs on the held-out batches, or on the only one that there is."""
    batches = calibration.held_out() or [calibration.first()]
    return [calibration.run(module, number, batch) for number, batch in enumerate(batches)]
