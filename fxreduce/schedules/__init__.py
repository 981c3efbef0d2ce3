"""The papers' methods: train, evaluate, measure, remove, and again, until the limit is reached.

result = fxreduce.schedules.easier(model, train_loader, train=train, evaluate=evaluate)
print(result.table())
reduced = result.merged()
"""

from fxreduce.schedules.api import run
from fxreduce.schedules.easier import Easier, easier
from fxreduce.schedules.egp import Egp, Nepenthe, egp, nepenthe
from fxreduce.schedules.layer_folding import LayerFolding, layer_folding
from fxreduce.schedules.loop import Distillation
from fxreduce.schedules.per_gain import PerGain
from fxreduce.schedules.result import ScheduleResult
from fxreduce.schedules.rounds import Round
from fxreduce.schedules.rule import Action, Rule, Stage
from fxreduce.schedules.tlc import Tlc, tlc
from fxreduce.schedules.training import (
    auxiliary_loss,
    begin_epoch,
    distil,
    distillation_loss,
    teacher,
)

__all__ = [
    "Action",
    "Distillation",
    "Easier",
    "Egp",
    "LayerFolding",
    "Nepenthe",
    "PerGain",
    "Round",
    "Rule",
    "ScheduleResult",
    "Stage",
    "Tlc",
    "auxiliary_loss",
    "begin_epoch",
    "distil",
    "distillation_loss",
    "easier",
    "egp",
    "layer_folding",
    "nepenthe",
    "run",
    "teacher",
    "tlc",
]
