"""A run in pieces computes what a run in one does, and lets go of what is read no more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from networks import Network
from strategies import networks
from torch import Tensor, nn

from fxreduce.graph.capture import capture
from fxreduce.graph.run import Run


@given(networks())
def test_values_are_those_of_a_run_in_one(drawn: tuple[Network, Tensor]) -> None:
    net, x = drawn
    graph_module = capture(net, x)
    nodes = [node for node in graph_module.graph.nodes if node.op not in ("placeholder", "output")]
    whole = Run(graph_module, [x.clone()], nodes)
    expected = {node: whole.take(node) for node in nodes}
    pieces = Run(graph_module, [x.clone()], nodes)
    for node in [*nodes[1::2], *nodes[::2]]:  # the earlier ones are kept until asked for
        found = pieces.take(node)
        if isinstance(found, Tensor):
            assert torch.equal(found, expected[node])
    (output,) = graph_module.graph.find_nodes(op="output")
    pieces.until(output)
    last = output.all_input_nodes[0]
    assert torch.equal(pieces.env[last], graph_module(x.clone())[0])


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return y.relu_() * 2


def test_a_kept_value_is_as_it_was_when_it_was_computed() -> None:
    graph_module = capture(Overwriting().eval())
    add, relu, mul = list(graph_module.graph.nodes)[1:4]
    run = Run(graph_module, [torch.tensor([-3.0, 1.0])], [add])
    run.until(mul)
    assert run.env[relu].tolist() == [0, 2]
    assert run.take(add).tolist() == [-2, 2]
    with pytest.raises(KeyError):
        run.take(add)  # it is kept no longer


def test_memory_is_that_of_the_values_that_are_still_read() -> None:
    net = nn.Sequential(*[nn.ReLU() for _ in range(5)]).eval()
    graph_module = capture(net)
    run = Run(graph_module, [torch.randn(100)])
    for node in list(graph_module.graph.nodes)[1:]:
        run.until(node)
        assert run.bytes() == 400


def test_weights_may_change_on_the_way() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    graph_module = capture(net)
    first, second, output = list(graph_module.graph.nodes)[1:]
    run = Run(graph_module, [torch.ones(1, 2)])
    run.until(second)
    with torch.no_grad():
        graph_module.get_submodule("1").weight.zero_()
    run.until(output)
    assert torch.equal(run.env[second], net[1].bias.detach().unsqueeze(0))
    assert first not in run.env


class Adding(nn.Module):
    """Adds its input to a buffer, and returns the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 1


def test_runs_that_take_turns_write_buffers_of_their_own() -> None:
    graph_module = capture(Adding().eval())
    *_, output = graph_module.graph.nodes
    (last,) = output.all_input_nodes
    runs = [Run(graph_module, [torch.full((2,), value)], [last]) for value in (1.0, 10.0)]
    for run in runs:
        run.until(last)
    assert [run.take(last).tolist() for run in runs] == [[1, 1], [10, 10]]
    assert graph_module.total.tolist() == [0, 0]
