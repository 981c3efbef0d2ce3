"""Every edit is counted, the given graph stays, and a new module takes nobody's path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import assert_close, assert_unchanged, state
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule, Node, Tracer, symbolic_trace

from fxreduce.graph.capture import capture
from fxreduce.graph.nodes import shape_of
from fxreduce.graph.recorder import Edit, Recorder, RefusedRewrite, absorbed
from fxreduce.graph.share import share


def chain() -> GraphModule:
    return symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh()))


def node_at(recorder: Recorder, target: str) -> Node:
    return next(node for node in recorder.nodes if node.target == target)


def targets(graph_module: GraphModule) -> list[str]:
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"]


def test_merging_three_nodes_creates_one_replaces_the_last_and_erases_the_others() -> None:
    graph_module = chain()
    recorder = Recorder(graph_module, "test")
    nodes = [node_at(recorder, name) for name in "012"]
    x = nodes[0].args[0]
    assert isinstance(x, Node)
    merged = recorder.merge(nodes, x, nn.Linear(3, 2), "why")
    assert [edit.action for edit in recorder.edits] == ["created", "replaced", "erased", "erased"]
    assert {edit.why for edit in recorder.edits} == {"why"}
    assert recorder.edits[0] == Edit("created", merged.name, "why")
    assert recorder.counts() == {"created": 1, "replaced": 1, "erased": 2}
    result = recorder.finish()
    assert targets(result) == ["0", "3"]
    assert result(torch.randn(5, 3)).shape == (5, 2)


def test_the_given_graph_module_stays_as_it_was() -> None:
    graph_module = capture(chain().eval())
    before = state(graph_module)
    recorder = Recorder(graph_module, "test")
    recorder.replace(node_at(recorder, "1"), node_at(recorder, "0"), "why")
    assert targets(recorder.finish()) == ["0", "2", "3"]
    assert_unchanged(graph_module, before)


def test_untouched_modules_keep_their_name_and_their_identity() -> None:
    graph_module = chain()
    recorder = Recorder(graph_module, "test")
    recorder.replace(node_at(recorder, "1"), node_at(recorder, "0"), "why")
    result = recorder.finish()
    assert result.get_submodule("2") is graph_module.get_submodule("2")
    assert "1" not in dict(result.named_modules())


def test_rerouting_leaves_the_node_and_its_earlier_readers() -> None:
    recorder = Recorder(symbolic_trace(lambda x: (x + 1, x * 2, x - 3)), "test")
    x, add, mul, sub, _ = recorder.nodes
    recorder.reroute(x, add, [sub], "why")
    recorder.reroute(x, add, [], "why")
    assert recorder.edits == [Edit("replaced", "x", "why")]
    assert recorder.finish()(torch.tensor(1.0)) == (2, 2, -1)
    assert mul.args[0] is x


def test_inserting_leaves_the_node_that_follows() -> None:
    recorder = Recorder(capture(chain().eval(), torch.randn(5, 3)), "test")
    relu = node_at(recorder, "1")
    (given,) = relu.all_input_nodes
    inserted = recorder.insert("new.deep", nn.Softsign(), given, relu, "why")
    assert recorder.counts() == {"created": 1}
    assert relu.args == (given,)
    assert inserted.meta["fxreduce.shape"] == (5, 4)
    assert targets(recorder.graph_module) == ["0", "new.deep", "1", "2", "3"]


def test_constants_go_with_the_node_that_alone_read_them() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    recorder = Recorder(capture(export(model, (torch.randn(2, 3),))), "test")
    first = next(node for node in recorder.nodes if node.op == "call_function")
    recorder.replace(first, first.all_input_nodes[0], "why")
    result = recorder.finish()
    assert [n.target for n in result.graph.nodes if n.op == "get_attr"] == ["1.weight", "1.bias"]
    assert set(result.state_dict()) == {"1.weight", "1.bias"}


def test_a_refusal_is_recorded_once() -> None:
    recorder = Recorder(chain(), "fold")
    for _ in range(2):
        recorder.refuse("here", "because")
    assert recorder.refusals == [RefusedRewrite("here", "because", "fold")]
    assert recorder.edits == []


def merged_path(graph_module: GraphModule, first: str, last: str) -> str:
    """Where the merger of two calls, by the names of their nodes, is put."""
    recorder = Recorder(graph_module, "test")
    at = {node.name: node for node in recorder.nodes}
    given = at[first].all_input_nodes[0]
    merged = recorder.merge([at[first], at[last]], given, nn.Identity(), "why")
    recorder.finish()
    return str(merged.target)


class Shared(nn.Module):
    """Calls conv twice; the second call is followed by a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv_1 = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv_1(self.conv(x))))


def test_a_merger_takes_the_path_of_its_first_module() -> None:
    graph_module = symbolic_trace(nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Tanh()))
    assert merged_path(graph_module, "_0_0", "_1") == "0.0"


def test_a_path_that_another_call_uses_is_not_taken_nor_one_that_exists() -> None:
    graph_module = symbolic_trace(Shared().eval())
    conv = graph_module.conv
    assert merged_path(graph_module, "conv_2", "norm") == "conv_2"
    assert graph_module.conv is conv


@pytest.mark.parametrize("nested", [False, True])
def test_in_an_exported_graph_a_merger_takes_the_path_of_the_module_it_came_from(
    nested: bool,
) -> None:
    inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model = (nn.Sequential(inner) if nested else inner).eval()
    graph_module = capture(export(model, (torch.randn(2, 3),)))
    assert merged_path(graph_module, "linear", "linear_1") == ("0.0" if nested else "0")


def test_functions_at_the_root_are_merged_at_a_path_of_their_own() -> None:
    graph_module = symbolic_trace(lambda x: (x + 1) * 2)
    assert merged_path(graph_module, "add", "mul") == "fused"


def test_a_merger_is_never_put_inside_a_module_that_is_called() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + torch.tanh(self.inner.fc(x))

    class InnerIsLeaf(Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Inner) or super().is_leaf_module(m, module_qualified_name)

    model = Outer()
    graph_module = GraphModule(model, InnerIsLeaf().trace(model))
    assert merged_path(graph_module, "inner_fc", "tanh") == "fused"
    assert isinstance(model.inner.fc, nn.Linear)


@pytest.mark.parametrize("convert", [lambda model: model, lambda m: export(m, (torch.ones(2, 3),))])
def test_a_shared_graph_module_computes_the_same_with_the_same_parameters(
    convert: Callable[[nn.Module], object],
) -> None:
    graph_module = capture(convert(chain().eval()))  # type: ignore[arg-type]
    copy = share(graph_module)
    x = torch.randn(2, 3)
    assert_close(graph_module(x), copy(x), 0)
    assert copy.graph is not graph_module.graph
    for name, parameter in copy.named_parameters():
        assert parameter is graph_module.get_parameter(name)


def test_a_call_that_stands_in_takes_the_path_of_nodes_that_are_to_go() -> None:
    recorder = Recorder(chain(), "test")
    first, last = node_at(recorder, "0"), node_at(recorder, "2")
    (x,) = first.all_input_nodes
    stand_in = recorder.stand_in([first], x, nn.Linear(3, 4), first, (5, 4), "why")
    (given,) = last.all_input_nodes
    other = recorder.stand_in([last], given, nn.Linear(4, 2), last, None, "why")
    assert (stand_in.target, other.target) == ("0", "2")
    assert shape_of(stand_in) == (5, 4)
    assert shape_of(other) is None
    assert (absorbed(stand_in), absorbed(other)) == (("0",), ("2",))
    assert stand_in.meta["fxreduce.origins"] == ("0.weight", "0.bias")
    assert other.meta["fxreduce.origins"] == ("2.weight", "2.bias")
    recorder.replace(last, other, "why")
    recorder.replace(first, stand_in, "why")
    assert recorder.counts() == {"created": 2, "replaced": 2}
    assert targets(recorder.finish()) == ["0", "1", "2", "3"]


def test_a_function_can_be_called_before_a_node() -> None:
    recorder = Recorder(symbolic_trace(lambda x: x + 1), "test")
    x, add, _ = recorder.nodes
    doubled = recorder.create("call_function", torch.mul, (x, 2), {}, add, (3,), "why")
    recorder.reroute(x, doubled, [add], "why")
    assert recorder.edits[0] == Edit("created", doubled.name, "why")
    assert recorder.finish()(torch.tensor(1.0)) == 3


class InPlaceStream(nn.Module):
    """A stream that each layer's output is added to in place, and a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        x = x.add_(self.one(x))
        x = x.add_(self.two(x))
        return x.view(-1)


def test_after_a_merge_the_new_value_shares_memory_with_what_the_old_one_did() -> None:
    recorder = Recorder(capture(InPlaceStream().eval()), "test")
    at = {node.name: node for node in recorder.nodes}
    before = recorder.aliases
    assert before.overwritten_between(at["tanh"], at["tanh"], at["two"])
    merged = recorder.merge([at["one"], at["add_"]], at["tanh"], nn.Linear(3, 3), "why")
    after = recorder.aliases
    assert after is before
    assert after.place(at["tanh"]) < after.place(merged) < after.place(at["two"])
    assert after.share_memory(merged, at["view"])
    assert not after.share_memory(merged, at["two"])
    assert not after.overwritten_between(at["tanh"], at["tanh"], at["two"])
    assert after.overwritten(merged) is at["add__1"]


def test_any_other_edit_lets_the_aliases_be_built_again() -> None:
    recorder = Recorder(capture(InPlaceStream().eval()), "test")
    at = {node.name: node for node in recorder.nodes}
    for edit in (
        lambda: recorder.insert("new", nn.Tanh(), at["tanh"], at["one"], "why"),
        lambda: recorder.reroute(at["tanh"], at["add_"], [at["two"]], "why"),
        lambda: recorder.replace(at["one"], at["tanh"], "why"),
    ):
        before = recorder.aliases
        edit()
        assert recorder.aliases is not before


def test_the_aliases_are_kept_where_a_value_is_replaced_by_one_in_the_same_memory() -> None:
    recorder = Recorder(capture(InPlaceStream().eval()), "test")
    at = {node.name: node for node in recorder.nodes}
    before = recorder.aliases
    recorder.replace(at["view"], at["add__1"], "why")
    assert recorder.aliases is before
    assert before.share_memory(at["add__1"], at["tanh"])
    assert before.overwritten(at["tanh"]) is at["add_"]


def test_merging_into_a_module_that_may_return_its_input_builds_the_aliases_again() -> None:
    recorder = Recorder(capture(InPlaceStream().eval()), "test")
    at = {node.name: node for node in recorder.nodes}
    assert not recorder.aliases.share_memory(at["one"], at["tanh"])
    merged = recorder.merge([at["one"]], at["tanh"], nn.Identity(), "why")
    assert recorder.aliases.share_memory(merged, at["tanh"])
