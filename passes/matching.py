"""What passes that look at one place after the other have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch.fx import Node

from fxreduce.graph.nodes import label
from fxreduce.graph.recorder import Recorder
from fxreduce.operators.affine import Refusal
from fxreduce.operators.cost import Candidate, CostModel, costs
from fxreduce.passes.base import PassResult
from fxreduce.passes.reasons import not_cheaper

Found = TypeVar("Found")
Decided = TypeVar("Decided")


def rewrite_matches(
    recorder: Recorder,
    match: Callable[[Recorder, Node], Found | Refusal | None],
    decide: Callable[[Found], Decided | Refusal | None],
    replace: Callable[[Recorder, Decided], Node | None],
) -> PassResult:
    """Rewrite each place of a graph that matches, or record why it stays as it is.

    Args:
        match: what stands at a node; None where that is nothing of the kind.
        decide: what shall be made of it, by arithmetic alone; None where nothing can be.
        replace: the surgery; it returns a node to look at next in the place, if there is one.
    """
    for node in recorder.nodes:
        place: Node | None = node
        while place is not None:
            found = match(recorder, place)
            place = None
            decided = found if found is None or isinstance(found, Refusal) else decide(found)
            if isinstance(decided, Refusal):
                recorder.refuse(label(node), decided.reason)
            elif decided is not None:
                place = replace(recorder, decided)
    return PassResult.of(recorder)


def dearer(
    model: CostModel,
    together: Sequence[Candidate],
    apart: Sequence[Candidate],
    *,
    at_par: bool = True,
) -> Refusal | None:
    """Why operators are not worth what they would take the place of, if so.

    All are rated in one comparison, so that a model that measures does it in turns.

    Args:
        together: what the rewrite would leave.
        apart: what is there.
        at_par: whether the rewrite is made at equal costs.
    """
    rates = costs(model, [*together, *apart])
    merged, present = sum(rates[: len(together)]), sum(rates[len(together) :])
    pays = merged <= present if at_par else merged < present
    return None if pays else Refusal(not_cheaper(merged, present, model.name))
