"""The errors that fxreduce raises: one root, so that a caller can catch them all.

A message says the rule, what was seen and what to do. A refused rewrite is not an error: it is a
`Refusal` in the report.
"""

from __future__ import annotations


class FxReduceError(Exception):
    """Root of every error that fxreduce raises on purpose."""


class CaptureError(FxReduceError):
    """The model could not be captured as a graph, or only in a mode that is refused."""


class CalibrationError(FxReduceError):
    """The calibration data are empty, malformed or not finite."""


class PlanError(FxReduceError):
    """A budget, a site name or a plan does not fit the model."""


class EquivalenceError(FxReduceError):
    """A pass that claims to be exact changed what the graph computes."""


class ScheduleError(FxReduceError):
    """A schedule's settings, training or checkpoint do not fit the model or each other."""


class UnsupportedError(FxReduceError):
    """The request is well formed, but names something that fxreduce does not have."""


class WeightsChangedError(FxReduceError):
    """Weights that were promised to stay what they are have changed."""


class TrainingError(FxReduceError):
    """Training went astray: a loss or a weight is no longer finite."""


def first_line(error: Exception) -> str:
    """What another library's error says, without the traceback that it may carry along."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def missing_extra(package: str, purpose: str, extra: str) -> UnsupportedError:
    """The error for a `package` that is not installed, with the command that installs it."""
    return UnsupportedError(
        f"{purpose} needs {package}, which is not installed: pip install 'fxreduce[{extra}]'"
    )
