"""Passes run in their order, can be switched off, are checked, and take turns until done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from checks import assert_close, randomised
from torch import Tensor, nn
from torch.fx import GraphModule

from fxreduce.errors import EquivalenceError, UnsupportedError
from fxreduce.graph.capture import capture
from fxreduce.graph.recorder import Recorder
from fxreduce.graph.share import share
from fxreduce.operators.cost import FlopsCost
from fxreduce.passes import pipeline
from fxreduce.passes.base import Pass, PassResult, Repeat, pass_names, run_pipeline
from fxreduce.passes.drop_identities import DropIdentities
from fxreduce.passes.fold_norm import FoldNorm
from fxreduce.passes.fold_scale import FoldScale
from fxreduce.passes.fuse_chain import FuseChain
from fxreduce.passes.fuse_parallel import FuseParallel
from fxreduce.passes.linearise import Linearise
from fxreduce.passes.observe import Observe
from fxreduce.passes.pipeline import (
    CONSTANTS,
    PREPARE,
    as_disabled,
    finishing,
    fusion,
    merging,
    register_pass,
)
from fxreduce.passes.single_assignment import SingleAssignment


def chain() -> GraphModule:
    return capture(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.ReLU()).eval())


@dataclass(frozen=True)
class Rename:
    """Does nothing but to say that it was here."""

    name: ClassVar[str] = "rename"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        recorder.refuse("graph", "nothing to do")
        return PassResult.of(recorder)


@dataclass(frozen=True)
class Break:
    """Leaves a node before what it reads."""

    name: ClassVar[str] = "break"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        recorder = Recorder(graph_module, self.name)
        first, *_, last, _ = recorder.nodes
        first.prepend(last)
        return PassResult.of(recorder)


@dataclass(frozen=True)
class Twice:
    """Tries two rewrites on the graph that it is given, and takes the second."""

    name: ClassVar[str] = "twice"
    exact: ClassVar[bool] = True

    def run(self, graph_module: GraphModule) -> PassResult:
        for _ in range(2):
            recorder = Recorder(graph_module, self.name)
            for node in recorder.nodes:
                if node.op == "call_module" and "2" in str(node.target):
                    recorder.replace(node, node.all_input_nodes[0], "tried")
        return PassResult.of(recorder)


OWN = (
    DropIdentities(),
    SingleAssignment(),
    Linearise(()),
    Observe(),
    FuseChain(),
    FuseParallel(),
    FoldScale(),
    FoldNorm(),
)


@pytest.mark.parametrize("each", OWN, ids=lambda each: each.name)
def test_a_pass_is_a_frozen_value_that_says_its_name_and_whether_it_is_exact(each: Pass) -> None:
    assert isinstance(each, Pass)
    assert each.exact is (each.name != "linearise")
    with pytest.raises(AttributeError):
        each.name = "other"  # type: ignore[misc]


def test_passes_run_in_their_order_and_their_records_are_joined() -> None:
    result = run_pipeline(chain(), (DropIdentities(), Rename(), FuseChain()))
    assert [edit.action for edit in result.edits] == ["replaced", "created", "replaced", "erased"]
    assert [refusal.rewrite for refusal in result.refusals] == ["rename"]


def test_a_pass_is_switched_off_by_name_within_a_repeat_too() -> None:
    passes = (DropIdentities(), Repeat((FuseChain(), Rename())))
    assert pass_names(passes) == ["drop_identities", "fuse_chain", "rename"]
    result = run_pipeline(chain(), passes, disable=("fuse_chain", "rename"))
    assert [edit.action for edit in result.edits] == ["replaced"]
    assert not result.refusals


def test_every_pass_that_changed_something_is_checked() -> None:
    checked: list[str] = []

    def check(graph_module: GraphModule, each: Pass) -> None:
        checked.append(each.name)

    run_pipeline(
        chain(), (SingleAssignment(), DropIdentities(), Rename(), FuseChain()), check=check
    )
    assert checked == ["drop_identities", "fuse_chain"]


def test_of_passes_that_follow_one_another_only_the_first_copies_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, copied = chain().double(), []
    code = given.code

    def noted(graph_module: GraphModule) -> GraphModule:
        copied.append(graph_module)
        return share(graph_module)

    monkeypatch.setattr("fxreduce.graph.recorder.share", noted)
    result = run_pipeline(given, (*PREPARE, *fusion(FlopsCost())))
    assert copied == [given]
    assert result.modified
    assert given.code == code
    x = torch.randn(3, 2, dtype=torch.float64)
    assert_close(given(x), result.graph_module(x))


def test_a_pass_from_elsewhere_may_use_the_graph_that_it_is_given_more_than_once() -> None:
    made = run_pipeline(chain(), (DropIdentities(), Twice(), Rename()))
    assert [edit.why for edit in made.edits if edit.why == "tried"] == ["tried"]
    assert [str(n.target) for n in made.graph_module.graph.find_nodes(op="call_module")] == [
        "0",
        "3",
    ]


def test_a_pass_that_changes_nothing_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given, compiled = chain(), []
    code = given.code

    def recompile(graph_module: GraphModule) -> None:
        if len(graph_module.graph.nodes):
            compiled.append(graph_module)

    monkeypatch.setattr(GraphModule, "recompile", recompile)
    result = run_pipeline(given, (SingleAssignment(), Rename()))
    assert not compiled
    assert result.graph_module is not given
    assert result.graph_module.code == code


def test_passes_that_take_turns_end_once_each_has_seen_the_same_graph() -> None:
    ran: list[str] = []

    @dataclass(frozen=True)
    class Drops(DropIdentities):
        """Notes that it ran."""

        def run(self, graph_module: GraphModule) -> PassResult:
            ran.append(self.name)
            return super().run(graph_module)

    @dataclass(frozen=True)
    class Notes(Rename):
        """Notes that it ran."""

        def run(self, graph_module: GraphModule) -> PassResult:
            ran.append(self.name)
            return super().run(graph_module)

    result = run_pipeline(chain(), (Repeat((Drops(), Notes())),))
    assert ran == ["drop_identities", "rename", "drop_identities"]
    assert [refusal.rewrite for refusal in result.refusals] == ["rename"]


def test_a_malformed_graph_is_an_error_that_names_the_pass() -> None:
    with pytest.raises(EquivalenceError, match="pass 'break' left a malformed graph"):
        run_pipeline(chain(), (Break(),))


def test_a_repeat_keeps_the_refusals_of_its_last_round_alone() -> None:
    class Model(nn.Module):
        """The sum joins the branches only once the branch is one operator."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.second(self.first(x)) + x))

    model, x = randomised(Model()), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    result = run_pipeline(capture(model, x), fusion(FlopsCost()))
    assert [node.op for node in result.graph_module.graph.nodes if node.op != "output"] == [
        "placeholder",
        "call_module",
    ]
    assert not result.refusals
    assert_close(model(x), result.graph_module(x))


def test_the_names_that_can_be_switched_off_are_checked() -> None:
    assert as_disabled("fuse_chain") == {"fuse_chain"}
    assert as_disabled(["fuse_chain", "drop_identities"]) == {"fuse_chain", "drop_identities"}
    with pytest.raises(UnsupportedError, match=r"disable takes names of passes .*; seen: 'fuse'"):
        as_disabled(("fuse",))


def test_what_prepares_comes_before_what_merges() -> None:
    names = pass_names((*PREPARE, *fusion(FlopsCost())))
    # Behind an identity an overwritten tensor has a second name, which only its dropping shows.
    assert names.index("drop_identities") < names.index("single_assignment")
    assert names[len(PREPARE) :] == [
        *(each.name for each in CONSTANTS),
        *(each.name for each in merging(FlopsCost())),
        *(each.name for each in finishing(FlopsCost())),
    ]
    # An average behind an operator would otherwise be merged into its windows.
    assert names.index("commute_pooling") < names.index("fuse_chain")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[Pass]:
    """What a test registers is forgotten after it."""
    passes: list[Pass] = []
    monkeypatch.setattr(pipeline, "_REGISTERED", passes)
    return passes


def test_a_registered_pass_takes_its_turn_and_one_of_its_name_replaces_it(
    registered: list[Pass],
) -> None:
    for _ in range(2):
        register_pass(Rename())
    assert registered == [Rename()]
    result = run_pipeline(chain(), fusion(FlopsCost()))
    assert "rename" in {refusal.rewrite for refusal in result.refusals}


@pytest.mark.parametrize(
    ("each", "reason"),
    [(Linearise(()), "only exact passes can be registered"), (FuseChain(), "a pass of fxreduce")],
)
def test_a_pass_that_is_not_exact_or_takes_a_name_cannot_be_registered(
    registered: list[Pass], each: Any, reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        register_pass(each)
    assert not registered
