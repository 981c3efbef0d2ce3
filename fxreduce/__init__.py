"""fxreduce makes trained networks shallower and faster.

It measures how much of a decision every rectifier takes, deletes those that matter least, and
merges the affine operators that then stand next to each other.
"""

from fxreduce import registry, schedules
from fxreduce.analysis import Analysis
from fxreduce.api import analyze, apply, fuse, linearize, report
from fxreduce.backend import backend, pre_grad_pass
from fxreduce.errors import (
    CalibrationError,
    CaptureError,
    EquivalenceError,
    FxReduceError,
    PlanError,
    ScheduleError,
    TrainingError,
    UnsupportedError,
    WeightsChangedError,
)
from fxreduce.graph.capture import capture
from fxreduce.planning.budgets import Budget, EntropyBelow, Fidelity, Fraction, MaxDrop, Remove
from fxreduce.planning.plan import Plan, PlanInterrupted
from fxreduce.planning.speedup import Speedup
from fxreduce.report.report import Report
from fxreduce.saving.model import load, save
from fxreduce.verify import Equivalence, verify

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Budget",
    "CalibrationError",
    "CaptureError",
    "EntropyBelow",
    "Equivalence",
    "EquivalenceError",
    "Fidelity",
    "Fraction",
    "FxReduceError",
    "MaxDrop",
    "Plan",
    "PlanError",
    "PlanInterrupted",
    "Remove",
    "Report",
    "ScheduleError",
    "Speedup",
    "TrainingError",
    "UnsupportedError",
    "WeightsChangedError",
    "analyze",
    "apply",
    "backend",
    "capture",
    "fuse",
    "linearize",
    "load",
    "pre_grad_pass",
    "registry",
    "report",
    "save",
    "schedules",
    "verify",
]
