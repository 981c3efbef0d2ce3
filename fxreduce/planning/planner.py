"""Making a plan: what is best to remove goes first, and all sites are measured again after it.

Best is the least important site, or the region with the least damage for what its removal saves.
What the budget does not bear is kept, and the next is tried: importance orders, what it costs
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import Tensor
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.errors import PlanError, UnsupportedError
from fxreduce.graph.recorder import RefusedRewrite
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.state import kept_state
from fxreduce.graph.values import name_values
from fxreduce.operators.affine import Refusal, ScaleShift
from fxreduce.operators.cost import CostModel, as_cost
from fxreduce.passes.base import PassResult, run_pipeline
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.pipeline import CONSTANTS, PREPARE
from fxreduce.planning.budgets import Budget, Context, Judge, as_budget, is_for_speed
from fxreduce.planning.candidates import ByRegion, BySite, Order, require_candidates
from fxreduce.planning.crop import Crops
from fxreduce.planning.example import Example, InputSpec
from fxreduce.planning.fingerprint import digest, fingerprint
from fxreduce.planning.gain import Gains, Sites
from fxreduce.planning.held_out import HeldOutError
from fxreduce.planning.importance import as_importance
from fxreduce.planning.measure import SiteStatistics
from fxreduce.planning.payoff import speedup
from fxreduce.planning.plan import Plan, PlanInterrupted, Step
from fxreduce.planning.ranking import Importance, Rank, SiteImportance, Stage, ranked
from fxreduce.planning.refit import SCOPES
from fxreduce.planning.regions import regions
from fxreduce.planning.remeasure import Measuring
from fxreduce.planning.settle import Settled, Settling
from fxreduce.planning.shared_cost import own_cost, shared_cost
from fxreduce.progress import counting

LOCAL = ("identity", "channel")  # what a site alone decides
COMPENSATIONS = (*LOCAL, "refit")
# One batch in three is held out, so that a budget is not judged on what the fit has seen.
HELD_OUT_EVERY = 3


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
    refit_scope: str = "downstream"
    candidates: str = "auto"
    exact: bool = False
    disable: Collection[str] = ()
    verify: bool = True

    @classmethod
    def of(
        cls,
        budget: int | float | str | Budget,
        importance: str | Importance | SiteImportance,
        cost: str | CostModel,
        compensate: str,
        include: Sequence[str] | str | None,
        exclude: Sequence[str] | str | None,
        entropy: str = "paper",
        axes: Mapping[str, int] | None = None,
        refit_scope: str = "downstream",
        candidates: str = "auto",
        exact: bool = False,
        disable: Collection[str] = (),
        verify: bool = True,
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
            refit_scope=refit_scope,
            candidates=candidates,
            exact=exact,
            disable=disable,
            verify=verify,
        )

    def __post_init__(self) -> None:
        require_compensation(self.compensate)
        require_candidates(self.candidates)
        if self.refit_scope not in SCOPES:
            raise UnsupportedError(
                f"refit_scope is one of {', '.join(map(repr, SCOPES))}; seen: {self.refit_scope!r}"
            )

    @property
    def fits(self) -> bool:
        """Whether the affine map that fits best takes a site's place, at first or at last."""
        return self.compensate != "identity"

    @property
    def by_region(self) -> bool:
        """Whether what is removed goes by what it saves."""
        return self.candidates == "regions" or (
            self.candidates == "auto" and is_for_speed(self.budget)
        )

    def crops(self, prepared: GraphModule) -> Crops | None:
        """The approximate merges that are made in a graph, if any: speed is what they are for."""
        approximate = self.by_region and self.compensate == "refit" and not self.exact
        return Crops(prepared) if approximate else None

    def order(self, prepared: GraphModule, crops: Crops | None) -> Order:
        """The order of removals from a graph, whose nodes know their shapes."""
        if not self.by_region:
            return BySite()
        return ByRegion(Gains(prepared, self.cost, self.disable, crops))


def require_compensation(name: str, known: Sequence[str] = COMPENSATIONS) -> None:
    """Raise UnsupportedError unless the compensation is a known one."""
    if name not in known:
        raise UnsupportedError(
            f"compensate is one of {', '.join(map(repr, known))}; seen: {name!r}"
        )


def make_plan(
    graph_module: GraphModule, calibration: Calibration, example: Example, options: Options
) -> Plan:
    """Remove what is best to remove as long as the budget allows, measuring after each removal.

    Args:
        graph_module: captured, its nodes knowing their shapes; unchanged.
        example: the batch that told the shapes.

    Raises:
        PlanError: the budget or a name does not fit the model.
        PlanInterrupted: by Ctrl-C, when something has been removed that the budget allows.
    """
    options = replace(options, cost=shared_cost(options.cost, calibration.ranks))
    with kept_state(graph_module):  # it runs many times, and may write its buffers
        search = _Search.begin(graph_module, calibration, example, options)
        fits = options.compensate == "refit"
        try:
            stopped, interrupted = search.run(), False
        except KeyboardInterrupt as interruption:
            calibration.ranks.interrupt(interruption)
            if fits or not search.steps:
                raise  # what is refitted has not been judged yet
            stopped, interrupted = "interrupted", True
        steps, replaced = tuple(search.steps), False
        weights, reads = dict[str, Tensor](), dict[str, str]()
        cropped: tuple[str, ...] = ()
        lines: tuple[str, ...] = (stopped,)
        if fits:
            settled = search.settle(example)
            interrupted = settled.interrupted
            steps = tuple(step for step in steps if step.site in settled.sites)
            lines = (stopped, *["interrupted"] * interrupted, *settled.lines)
            weights, reads = dict(settled.weights), dict(settled.reads)
            replaced, cropped = not settled.maps, settled.cropped
        elif not interrupted:
            search.drop_maps_that_harm()
    plan = Plan(
        steps=steps,
        regions=regions(graph_module, [step.site for step in steps]),
        compensate=options.compensate,
        stopped="; ".join(lines),
        entropies=search.entropies,
        importances=search.importances,
        trials=search.judge.trials(),
        architecture=fingerprint(graph_module),
        cost=own_cost(options.cost),
        maps={step.site: search.maps[step.site] for step in steps if search.maps},
        maps_replaced=replaced,
        cropped=cropped,
        weights=weights,
        reads=reads,
        fitted_to=digest(graph_module) if weights else "",
        refusals=tuple(search.refusals),
        inputs=InputSpec.of(example),
    )
    if calibration.ranks.size > 1:
        advice = "Cost models, budgets and importances of your own must say the same on every rank"
        calibration.ranks.require_same("plan", plan.digest, advice)
    if interrupted:
        raise PlanInterrupted(plan)
    return plan


@dataclass
class _Search:
    """The greedy search while it runs: the graph as far as it is reduced, and what is left."""

    prepared: GraphModule
    current: GraphModule
    calibration: Calibration
    options: Options
    judge: Judge
    crops: Crops | None
    order: Order
    names: list[str]
    candidates: list[str]
    measuring: Measuring
    refused: set[Sites] = field(default_factory=set)
    removals: list[Sites] = field(default_factory=list)
    entropies: dict[str, float] = field(default_factory=dict)
    importances: dict[str, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    maps: dict[str, ScaleShift] = field(default_factory=dict)
    ranks: dict[str, Rank] = field(default_factory=dict)
    refusals: list[RefusedRewrite] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        graph_module: GraphModule,
        calibration: Calibration,
        example: Example,
        options: Options,
    ) -> _Search:
        prepared = run_pipeline(graph_module, PREPARE).graph_module
        name_values(prepared)
        prepared = run_pipeline(prepared, CONSTANTS, disable=options.disable).graph_module
        names = [site.name for site in find_sites(prepared)]
        candidates = selected(names, options.include, options.exclude)
        calibration = calibration.hold_out(HELD_OUT_EVERY)
        judge = options.budget.begin(
            Context(
                prepared,
                len(candidates),
                calibration.outputs,
                lambda module: speedup(prepared, module, options.cost, example, options.disable),
                calibration.ranks,
            )
        )
        crops = options.crops(prepared)
        order = options.order(prepared, crops)
        measuring = Measuring(
            calibration,
            example.batch,
            entropy=options.entropy,
            moments=options.fits or options.importance.moments,
            axes=options.axes,
        )
        return cls(
            prepared,
            prepared,
            calibration,
            options,
            judge,
            crops,
            order,
            names,
            candidates,
            measuring,
        )

    def run(self) -> str:
        """Remove sites until something ends it; returns what did."""
        stopped = self._greedy()
        self.refusals.extend(
            RefusedRewrite(name, f"ranked last: {self.ranks[name].unjudged}", "plan")
            for name in self.candidates
            if name in self.ranks and self.ranks[name].unjudged is not None
        )
        if (shortfall := self.judge.shortfall()) is None:
            return stopped
        self.refusals.append(RefusedRewrite("the whole graph", shortfall.reason, "plan"))
        self.current, self.steps = shortfall.graph_module, self.steps[: shortfall.keep]
        kept = {step.site for step in self.steps}
        self.removals = [sites for sites in self.removals if kept.issuperset(sites)]
        self.maps = {step.site: self.maps[step.site] for step in self.steps if self.maps}
        return f"{stopped}; {shortfall.reason}"

    def _greedy(self) -> str:
        most = self.judge.most()
        total = len(self.candidates) if most is None else most
        progress = self.calibration.progress
        with counting("removing rectifiers", total=total, progress=progress) as advance:
            return self._remove_until_enough(advance)

    def _remove_until_enough(self, advance: Callable[[int], object]) -> str:
        satisfied = self.judge.satisfied
        while (reason := satisfied(self.current, len(self.steps))) is None and self.candidates:
            if (reason := self.judge.enough(len(self.steps))) is not None:
                return reason
            measured = self._measure()
            self.ranks = self._rank(measured)
            self.importances |= {name: rank.value for name, rank in self.ranks.items()}
            for sites in self._next():
                if sites in self.refused or self._exceeds(sites):
                    continue
                reasons = [self.judge.before(measured[name]) for name in sites]
                if reason := next(filter(None, reasons), None):
                    return reason
                if self._remove([measured[name] for name in sites]):
                    advance(len(sites))
                    break
            else:
                break
        return reason or "no site is left to try"

    def _next(self) -> list[Sites]:
        """What to remove next, the best first, the same on all ranks."""
        found = self.order.next(self.candidates, self.ranks)
        chosen = self.calibration.ranks.first("choosing", lambda: found)
        return [tuple(sites) for sites in chosen]

    def drop_maps_that_harm(self) -> None:
        """Let the identity take the sites' place where that does better on held-out batches.

        Each map is the best one for its own site, which does not make their chain the best one.
        """
        if not self.maps:
            return
        errors = HeldOutError(self.prepared, self.calibration)
        plain = Linearise(tuple(self.maps)).run(self.prepared).graph_module
        mapped, bare = errors(self.current), errors(plain)
        if bare >= mapped or self.judge.after(plain) is not None:
            return
        reason = (
            "the identity takes the rectifiers' place, as with affine maps the squared error of "
            f"the output on held-out batches is {mapped:.3g} instead of {bare:.3g}"
        )
        self.refusals.append(RefusedRewrite("the whole graph", reason, Linearise.name))
        self.current, self.maps = plain, {}

    def settle(self, example: Example) -> Settled:
        """How far the removals go once the weights are refitted."""
        options = self.options
        settling = Settling(
            self.prepared,
            self.maps,
            self.calibration,
            example,
            options.cost,
            options.refit_scope,
            self.judge,
            options.disable,
            options.verify,
            self.crops,
        )
        settled = settling.run(self.removals)
        self.refusals.extend(settled.refusals)
        return settled

    def _measure(self) -> Mapping[str, SiteStatistics]:
        """The sites as they are now; the first time those that shall not be removed, too."""
        wanted = self.candidates if self.entropies else self.names
        measured = self.measuring.measure(self.current, wanted)
        self.entropies |= {name: site.entropy for name, site in measured.items()}
        return measured

    def _rank(self, measured: Mapping[str, SiteStatistics]) -> dict[str, Rank]:
        """The rank of every site that may go."""

        def without(name: str) -> GraphModule | Refusal:
            trial = self._without([measured[name]])
            return Refusal(trial.refusals[0].reason) if trial.refusals else trial.graph_module

        sites = {name: measured[name] for name in measured if name in self.candidates}
        stage = Stage(self.current, sites, self.calibration, without)
        return ranked(self.options.importance, stage)

    def _without(self, sites: Sequence[SiteStatistics]) -> PassResult:
        """The graph without some more sites."""
        maps = {name: fit for site in sites for name, fit in self._fit(site).items()}
        return Linearise(tuple(site.name for site in sites), maps).run(self.current)

    def _fit(self, site: SiteStatistics) -> dict[str, ScaleShift]:
        return {site.name: site.affine_fit()} if self.options.fits else {}

    def _exceeds(self, sites: Sites) -> bool:
        """Whether a part of the sites is already all that is asked for."""
        return self.judge.enough(len(self.steps) + len(sites) - 1) is not None

    def _remove(self, sites: Sequence[SiteStatistics]) -> bool:
        """Try to remove sites together. A refusal is final: later removals add to the damage."""
        names = tuple(site.name for site in sites)
        self.refused.add(names)
        trial = self._without(sites)
        if trial.refusals:
            self._refuse(trial.refusals)
            return False
        # What is refitted is judged when it is.
        judged = self.options.compensate != "refit"
        if judged and (reason := self.judge.after(trial.graph_module)) is not None:
            self._refuse([RefusedRewrite(" + ".join(names), reason, Linearise.name)])
            return False
        for site in sites:
            rank = self.ranks[site.name]
            self.steps.append(Step(site.name, site.entropy, rank.value, rank.unjudged))
            self.maps |= self._fit(site)
        self.removals.append(names)
        self.candidates = [name for name in self.candidates if name not in names]
        self.measuring.removed(self.current, names)
        self.current = trial.graph_module
        self.order.remove(names)
        return True

    def _refuse(self, refusals: Iterable[RefusedRewrite]) -> None:
        self.refusals.extend(each for each in refusals if each not in self.refusals)


def selected(
    names: Collection[str], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> list[str]:
    """The sites that `include` and `exclude` leave, in order.

    Raises:
        PlanError: a pattern matches no site.
    """
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise PlanError(
                    f"{option} takes names of sites or globs over them; {pattern!r} matches none "
                    f"of {', '.join(list(names)[:8])}{', ...' if len(names) > 8 else ''}"
                )
    return [
        name
        for name in names
        if (include is None or _matches(name, include)) and not _matches(name, exclude or ())
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
