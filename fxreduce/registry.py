"""The extension points: what a tooling author registers, and the types that it is written with.

What is registered is used by its name or found in graphs. An installed package may register through
entry points, too: in the groups `fxreduce.rectifiers`, `fxreduce.operators`, `fxreduce.passes`,
`fxreduce.importances`, `fxreduce.budgets` and `fxreduce.costs` it names functions without arguments
that call what is here.
"""

from fxreduce.graph.affine import AffineCall, read_affine, register_operator
from fxreduce.graph.modules import to_module
from fxreduce.graph.nodes import argument, module_input, module_of, operation
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.rectifiers import register_rectifier
from fxreduce.operators.affine import Conv, Refusal, ScaleShift
from fxreduce.operators.cost import CostModel, register_cost
from fxreduce.operators.setting import Setting
from fxreduce.passes.base import Pass, PassResult
from fxreduce.passes.pipeline import register_pass
from fxreduce.planning.budgets import Context, Judge, Shortfall, register_budget
from fxreduce.planning.importance import register_importance
from fxreduce.planning.measure import SiteStatistics
from fxreduce.planning.ranking import Importance, Rank, Stage
from fxreduce.report.trial import Trial

__all__ = [
    "AffineCall",
    "Context",
    "Conv",
    "CostModel",
    "Importance",
    "Judge",
    "Pass",
    "PassResult",
    "Rank",
    "Recorder",
    "Refusal",
    "ScaleShift",
    "Setting",
    "Shortfall",
    "SiteStatistics",
    "Stage",
    "Trial",
    "argument",
    "module_input",
    "module_of",
    "operation",
    "read_affine",
    "register_budget",
    "register_cost",
    "register_importance",
    "register_operator",
    "register_pass",
    "register_rectifier",
    "to_module",
]
