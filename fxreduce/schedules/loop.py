"""The one loop of all schedules: train, evaluate, measure, remove, again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import GraphModule

from fxreduce.calibration.batches import Calibration
from fxreduce.calibration.ranks import first_rank, over_ranks, rank
from fxreduce.errors import ScheduleError
from fxreduce.graph.feeding import Feeding
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import Refusal, ScaleShift
from fxreduce.operators.cost import CostModel
from fxreduce.passes.base import run_pipeline
from fxreduce.passes.pipeline import PREPARE
from fxreduce.planning.budgets import Budget, Context, Judge, is_number
from fxreduce.planning.example import Example
from fxreduce.planning.payoff import speedup
from fxreduce.planning.planner import HELD_OUT_EVERY
from fxreduce.planning.refit import SCOPES
from fxreduce.schedules.alive import alive
from fxreduce.schedules.checkpoint import Checkpoint, Progress
from fxreduce.schedules.network import Network, plain_copy
from fxreduce.schedules.pruning import settle
from fxreduce.schedules.random_state import seed_all
from fxreduce.schedules.refitting import refit_network
from fxreduce.schedules.rounds import Round
from fxreduce.schedules.rule import Action, Evaluate, Rule, Scores, Stage, Train, value_of
from fxreduce.schedules.training import Teacher
from fxreduce.schedules.watch import seen, watched
from fxreduce.training.distributed import share_buffers

COMPENSATIONS = ("identity", "channel", "refit")
REWINDS = (None, "dense", "initial")


@dataclass(frozen=True)
class Distillation:
    """Training again learns from the dense model's outputs, too; see `distil`.

    Attributes:
        temperature: of both softmaxes.
        weight: of the distance to the dense model's outputs; the loss on labels has the rest.
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not self.temperature > 0:
            raise ScheduleError(f"a temperature is a positive number; seen: {self.temperature!r}")
        if not is_number(self.weight) or not 0 <= self.weight <= 1:
            raise ScheduleError(f"a weight lies between 0 and 1; seen: {self.weight!r}")


@dataclass(frozen=True)
class Settings:
    """What a schedule does beside its rule; see `fxreduce.schedules.run`."""

    drop: float | None
    rounds: int | None
    compensate: str
    refit: bool
    refit_scope: str
    rewind: str | None
    distillation: Distillation | None

    def __post_init__(self) -> None:
        for name, known in (
            ("compensate", COMPENSATIONS),
            ("rewind", REWINDS),
            ("refit_scope", SCOPES),
        ):
            if (given := getattr(self, name)) not in known:
                raise ScheduleError(
                    f"{name} is one of {', '.join(map(repr, known))}; seen: {given!r}"
                )
        if self.drop is not None and (not is_number(self.drop) or not self.drop >= 0):
            raise ScheduleError(f"drop is a number, 0 or more, or None; seen: {self.drop!r}")
        whole = is_number(self.rounds) and self.rounds >= 0 and self.rounds % 1 == 0
        if self.rounds is not None and not whole:
            raise ScheduleError(
                f"rounds is a whole number, 0 or more, or None; seen: {self.rounds!r}"
            )


class Schedule:
    """A schedule while it runs; see `fxreduce.schedules.run`.

    Of `trains` the first trains the dense network, the second in the rounds.
    """

    def __init__(
        self,
        network: Network,
        rule: Rule,
        trains: tuple[Train, Train],
        evaluate: Evaluate,
        settings: Settings,
        names: Sequence[str],
        calibration: Calibration,
        example: Example,
        checkpoint: Checkpoint,
        seed: int | None,
    ) -> None:
        self._network = network
        self._rule = rule
        self._user_trains = trains
        self._user_evaluate = evaluate
        self._settings = settings
        self._names = names
        self._calibration = calibration
        self._example = example
        self._checkpoint = checkpoint
        self._seed = seed
        self._judge = Judge()
        self._budget: Budget | None = None
        feeding = Feeding(network.base)
        self._feeds = {site.name: feeding.of(site) for site in find_sites(network.base)}
        self._trainings = 0
        self._teacher: Teacher | None = None
        self._progress = Progress()

    def limit(self, budget: Budget | None, cost: CostModel) -> None:
        """Set what else ends the schedule, and what rates networks."""
        self._budget = budget
        dense = run_pipeline(self._network.base, PREPARE).graph_module

        def rated(module: GraphModule) -> float:
            reduced = run_pipeline(plain_copy(module), PREPARE).graph_module
            return speedup(dense, reduced, cost, self._example)

        self._speedup = rated

    def run(self, trained: bool, on_round: Callable[[Round], None] | None) -> Progress:
        """All rounds that are not done yet."""
        done = self._checkpoint.load()
        if done is None:
            self._progress.snapshots["initial"] = self._network.snapshot()
            # Before hours of training, whether there is room to keep what comes of them.
            self._checkpoint.save(self._progress)
        else:
            self._progress = done
        told = len(self._progress.rounds)
        if self._progress.stopped is not None:
            return self._progress
        if not self._progress.rounds:
            self._restore("initial")
            self._begin_round()
            if not trained:
                self._train(self._network.module)
            self._end_round(Round(0, 0.0))
            told = self._tell(told, on_round)
        self._restore("last")
        self._begin_budget()
        while (stopped := self._stop() or self._round()) is None:
            told = self._tell(told, on_round)
        self._finish()
        self._tell(told, on_round)
        self._progress.stopped = stopped
        self._checkpoint.save(self._progress)
        return self._progress

    def _tell(self, told: int, on_round: Callable[[Round], None] | None) -> int:
        for each in self._progress.rounds[told:] if on_round is not None else ():
            on_round(each)  # type: ignore[misc]
        return len(self._progress.rounds)

    def _restore(self, role: str) -> None:
        """Work on what a snapshot holds, so that a resumed run has the very same modules."""
        self._network = Network.restore(self._network.base, self._progress.snapshots[role])
        self._network.module.eval()

    def _begin_budget(self) -> None:
        if self._budget is None:
            return
        dense = Network.restore(self._network.base, self._progress.snapshots["dense"]).module.eval()
        parted = self._calibration.hold_out(HELD_OUT_EVERY)
        context = Context(dense, len(self._names), parted.outputs, self._speedup, parted.ranks)
        self._judge = self._budget.begin(context)

    def _stop(self) -> str | None:
        """Why there is no further round."""
        rounds, settings = self._progress.rounds, self._settings
        if (last := rounds[-1]).objection is not None:
            return last.objection
        if settings.rounds is not None and len(rounds) > settings.rounds:
            return f"the last of {settings.rounds} rounds is done"
        stage = self._stage()
        if not stage.sites:
            return "no site is left that can be removed"
        removed = len(self._network.removals)
        return (
            self._judge.enough(removed)
            or self._judge.satisfied(self._network.module, removed)
            or self._rule.stop(stage)
        )

    def _stage(self) -> Stage:
        left = set(self._network.sites) - set(self._progress.stuck)
        return Stage(
            self._network,
            tuple(name for name in self._names if name in left),
            tuple(self._progress.rounds),
            self._calibration,
            self._feeds,
            self._progress.watched,
            self._train,
            self._evaluate,
        )

    def _round(self) -> str | None:
        """Decide, remove, train, evaluate; returns why there was nothing to do, if so."""
        self._begin_round()
        stage = self._stage()
        scores = _checked(self._rule.score(stage), stage)
        action = self._rule.act(stage, scores)
        names = list(action.remove)
        if first_rank(names) != names:
            raise ScheduleError(
                "all ranks must decide alike; they do not. Let evaluate return the same on each"
            )
        number = len(self._progress.rounds)
        if not names and not action.masks:
            return action.why or "the rule finds nothing to do"
        if (reason := self._not_borne(stage, names)) is not None:
            return reason
        before = plain_copy(self._network.module) if self._settings.refit else None
        pruned = self._network.mask(action.masks)
        refused = self._network.remove(self._maps(stage, action), frozen=action.frozen)
        self._progress.stuck |= refused
        if len(refused) == len(names) and not action.masks:
            return None  # they are no candidates any more, the next try finds others
        if before is not None:
            refused |= self._refit(before)
        if self._settings.rewind is not None:
            self._network.rewind(self._progress.snapshots[self._settings.rewind])
        self._train(self._network.module)
        removed = tuple(name for name in names if name not in self._progress.stuck)
        self._end_round(Round(number, 0.0, removed, 0, pruned, scores, action.why, refused=refused))
        return None

    def _refit(self, before: GraphModule) -> dict[str, str]:
        """Fit the weights, unless the accuracy falls by that; returns why weights stay."""
        as_removed = self._network.snapshot()
        accuracy = self._evaluate(self._network.module)
        calibration = self._calibration.hold_out(HELD_OUT_EVERY)
        refused = refit_network(self._network, before, calibration, self._settings.refit_scope)
        if (fitted := self._evaluate(self._network.module)) >= accuracy:
            return refused
        self._network = Network.restore(self._network.base, as_removed)
        change = f"from {accuracy:.4g} to {fitted:.4g}"
        why = Refusal(f"the weights stay, as fitting lowers the accuracy {change}")
        return {"the whole graph": why.reason}

    def _finish(self) -> None:
        """What the rule does at the end, unless the last round went too far already."""
        if self._progress.rounds[-1].objection is not None:
            return
        self._trainings = 0
        stage = self._stage()
        action = self._rule.finish(stage)
        if self._not_borne(stage, list(action.remove)) is not None:
            return
        refused = self._network.remove(self._maps(stage, action), frozen=action.frozen)
        self._progress.stuck |= refused
        if removed := tuple(name for name in action.remove if name not in refused):
            number = len(self._progress.rounds)
            self._end_round(Round(number, 0.0, removed, why=action.why, refused=refused))

    def _not_borne(self, stage: Stage, names: Sequence[str]) -> str | None:
        """Why the budget does not bear what the rule has chosen."""
        if self._budget is None or not names:
            return None
        measured = stage.measure()
        reasons = (self._judge.before(measured[name]) for name in names if name in measured)
        return next((reason for reason in reasons if reason is not None), None)

    def _maps(self, stage: Stage, action: Action) -> Mapping[str, ScaleShift | None]:
        if self._settings.compensate != "channel" or None not in action.remove.values():
            return action.remove
        measured = stage.measure(moments=True)
        return {name: each or measured[name].affine_fit() for name, each in action.remove.items()}

    def _begin_round(self) -> None:
        self._trainings = 0
        if self._seed is not None:
            number = len(self._progress.rounds)
            # Ranks differ, so that they do not distort their images alike.
            seed_all(zlib.crc32(f"{self._seed}.{number}.{rank()}".encode()))

    def _end_round(self, done: Round) -> None:
        progress, module = self._progress, self._network.module
        accuracy = self._evaluate(module)
        dense = progress.rounds[0].accuracy if progress.rounds else accuracy
        objection = self._objection(dense, accuracy)
        progress.rounds.append(
            replace(
                done,
                accuracy=accuracy,
                left=len(self._network.sites),
                allowed=objection is None,
                objection=objection,
                trainings=self._trainings,
            )
        )
        snapshot = self._network.snapshot()
        if done.number == 0:
            progress.snapshots["dense"] = snapshot
        if objection is None:
            progress.snapshots["best"] = snapshot
        progress.snapshots["last"] = snapshot
        self._checkpoint.save(progress)

    def _objection(self, dense: float, accuracy: float) -> str | None:
        """Why a round with such an accuracy does not count."""
        drop = self._settings.drop
        if drop is not None and dense - accuracy > drop:
            return f"the accuracy falls from {dense:.4g} to {accuracy:.4g}, by more than {drop:g}"
        return self._judge.after(self._network.module)

    def _evaluate(self, module: nn.Module) -> float:
        settle(module)
        with torch.no_grad():
            return value_of(self._user_evaluate, module.eval(), "evaluate")

    def _train(self, module: GraphModule) -> None:
        """Train a graph that shares its weights with the network, in full."""
        given = alive(watched(module) if self._rule.watches else module)
        if (taught := self._taught_by()) is not None:
            given.add_module("fxreduce_teacher", taught)
        dense, again = self._user_trains
        (again if self._progress.rounds else dense)(given.train())
        share_buffers(given)
        self._trainings += 1
        given.eval()
        settle(given)
        for name, tensor in given.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ScheduleError(
                    f"training must leave finite weights; {name} has NaN or infinity. Lower the "
                    "learning rate; the checkpoint holds the round before"
                )
        if self._rule.watches:
            self._progress.watched = over_ranks(seen(given))

    def _taught_by(self) -> Teacher | None:
        """The dense network, once there is one, where there shall be distillation."""
        wanted, dense = self._settings.distillation, self._progress.snapshots.get("dense")
        if wanted is None or dense is None:
            return None
        if self._teacher is None:
            module = Network.restore(self._network.base, dense).module.eval()
            self._teacher = Teacher(module.requires_grad_(False), wanted.temperature, wanted.weight)
        return self._teacher


def _checked(scores: Scores, stage: Stage) -> dict[str, float]:
    """The scores as floats, in order of execution.

    Raises:
        ScheduleError: one is not a number.
    """
    for name, score in scores.items():
        if name not in stage.sites or not is_number(score) or score != score:
            raise ScheduleError(
                f"a rule's score(stage) returns a number for sites of stage.sites; seen: {score!r} "
                f"for {name!r}"
            )
    return {name: float(scores[name]) for name in stage.sites if name in scores}
