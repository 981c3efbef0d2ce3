"""What a pass is, and the pipeline that runs passes and checks each one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor
from torch.fx import GraphModule

from fxreduce.errors import EquivalenceError
from fxreduce.graph.recorder import Edit, Recorder, RefusedRewrite, lent


@dataclass(frozen=True)
class PassResult:
    """What a pass made: a new graph module, the edits, and what it refused with the reasons."""

    graph_module: GraphModule
    edits: tuple[Edit, ...] = ()
    refusals: tuple[RefusedRewrite, ...] = ()

    @property
    def modified(self) -> bool:
        return bool(self.edits)

    @classmethod
    def of(cls, recorder: Recorder) -> PassResult:
        return cls(recorder.finish(), tuple(recorder.edits), tuple(recorder.refusals))


@runtime_checkable
class Pass(Protocol):
    """A rewrite of a graph module: a frozen dataclass whose fields are its options.

    Attributes:
        name: by which reports name it and a user switches it off.
        exact: whether the rewritten graph computes the same for every input.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]

    def run(self, graph_module: GraphModule) -> PassResult:
        """Rewrite a copy; the given graph module is unchanged."""
        ...


Check = Callable[[GraphModule, Pass], None]


@dataclass(frozen=True)
class Repeat:
    """Passes to run in turn until none of them changes anything."""

    passes: tuple[Pass, ...]


Pipeline = Sequence[Pass | Repeat]


def run_pipeline(
    graph_module: GraphModule,
    pipeline: Pipeline,
    *,
    disable: Collection[str] = (),
    check: Check | None = None,
) -> PassResult:
    """Run passes one after the other; the given graph module is unchanged.

    Args:
        disable: names of passes to skip.
        check: called after each pass that changed something, whether it records that or not.

    Raises:
        EquivalenceError: from `check`, or a pass left a graph that is not well-formed.
    """
    edits: list[Edit] = []
    refusals: list[RefusedRewrite] = []
    given = graph_module
    for each in pipeline:
        if isinstance(each, Repeat):
            result = _repeat(graph_module, each.passes, disable, check, given)
        elif each.name in disable:
            continue
        else:
            result = _run(graph_module, each, check, given)
        graph_module = result.graph_module
        edits.extend(result.edits)
        refusals.extend(result.refusals)
    return PassResult(graph_module, tuple(edits), tuple(refusals))


def pass_names(pipeline: Pipeline) -> list[str]:
    """The names of the passes of a pipeline, by which they can be switched off."""
    return [
        name
        for each in pipeline
        for name in (pass_names(each.passes) if isinstance(each, Repeat) else [each.name])
    ]


def _run(
    graph_module: GraphModule, each: Pass, check: Check | None, given: GraphModule
) -> PassResult:
    """One turn of a pass, checked.

    What passes have made of the `given` graph module is the pipeline's own. It is lent to passes of
    fxreduce, which make one recorder and read nothing but its graph; others may do as they like.
    """
    own = graph_module is not given and type(each).__module__.startswith(f"{__package__}.")
    before = None if check is None else _State.of(graph_module)
    try:
        with lent(graph_module) if own else nullcontext():
            result = each.run(graph_module)
        result.graph_module.graph.lint()
    except RuntimeError as error:
        raise EquivalenceError(
            f"pass {each.name!r} left a malformed graph: {str(error).splitlines()[0]}"
        ) from error
    if check is not None:
        after = result.graph_module
        # A pass that records no edit may have changed what the graph computes all the same.
        overwritten = after is graph_module and not own
        if result.modified or overwritten or before != _State.of(after):
            check(after, each)
    return result


@dataclass(frozen=True)
class _State:
    """What a graph computes with: its code, and which tensors it has."""

    code: str
    tensors: tuple[int, ...]
    held: Sequence[Tensor] = field(compare=False)  # or another tensor could get the same identity

    @classmethod
    def of(cls, graph_module: GraphModule) -> _State:
        held = [*graph_module.parameters(), *graph_module.buffers()]
        return cls(graph_module.code, tuple(map(id, held)), held)


def _repeat(
    graph_module: GraphModule,
    passes: tuple[Pass, ...],
    disable: Collection[str],
    check: Check | None,
    given: GraphModule,
) -> PassResult:
    """Turns until every pass has seen a graph that none of them changes.

    The refusals of each one's last turn count, as later merges settle earlier ones.

    Raises:
        EquivalenceError: there is no end to it.
    """
    enabled = [each for each in passes if each.name not in disable]
    edits: list[Edit] = []
    refusals: list[tuple[RefusedRewrite, ...]] = [()] * len(enabled)
    in_vain = 0  # turns since something changed
    # A merge leaves fewer nodes than it found, so that there are no more rounds than nodes.
    rounds = len(graph_module.graph.nodes) + 1
    for place, each in islice(cycle(enumerate(enabled)), rounds * len(enabled)):
        result = _run(graph_module, each, check, given)
        graph_module, refusals[place] = result.graph_module, result.refusals
        edits.extend(result.edits)
        in_vain = 0 if result.modified else in_vain + 1
        if in_vain == len(enabled):
            break
    else:
        if edits:
            raise EquivalenceError(
                f"passes {', '.join(pass_names(enabled))} take turns until none of them changes "
                f"anything; one still does, the last with: {edits[-1].why}. A pass must come to an "
                "end"
            )
    return PassResult(graph_module, tuple(edits), tuple(chain.from_iterable(refusals)))
