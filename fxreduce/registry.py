"""The extension points: what a tooling author registers to be used by name or found in graphs."""

from fxreduce.graph.affine import register_operator
from fxreduce.graph.rectifiers import register_rectifier
from fxreduce.operators.cost import register_cost
from fxreduce.passes.pipeline import register_pass
from fxreduce.planning.budgets import register_budget
from fxreduce.planning.importance import register_importance

__all__ = [
    "register_budget",
    "register_cost",
    "register_importance",
    "register_operator",
    "register_pass",
    "register_rectifier",
]
