"""Comparisons that the tests share: outputs, and models before and after."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.capture import capture
from fxreduce.graph.compare import difference
from fxreduce.operators.affine import Operator, Refusal, apply, in_double
from fxreduce.passes.base import Pass, PassResult

RELATIVE = 1e-9


def assert_close(expected: Any, seen: Any, relative: float = RELATIVE) -> None:
    """Equal structure, shapes and dtypes, and values up to a share of the largest one."""
    with torch.no_grad():
        apart = difference(expected, seen)
    assert apart.max_rel <= relative, apart
    if isinstance(expected, Tensor):
        assert expected.dtype == seen.dtype


def randomised(model: nn.Module) -> nn.Module:
    """The model in eval mode and float64, with batch-norm statistics that change something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name in ("running_mean", "running_var", "weight", "bias"):
                tensor = getattr(module, name)
                if tensor is not None:
                    tensor.detach().copy_(torch.rand_like(tensor) + 0.5)
    return model.double().eval()


def state(model: nn.Module) -> dict[str, Any]:
    """All that a rewrite could change of a model: tensors, modes, hooks, structure, code."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identities": {
            name: (id(parameter), parameter.requires_grad, parameter._version)
            for name, parameter in model.named_parameters(remove_duplicate=False)
        },
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: (dict(module._forward_hooks), dict(module._forward_pre_hooks))
            for name, module in model.named_modules()
        },
        "classes": {name: type(module) for name, module in model.named_modules()},
        "code": {
            name: (module.code, [(node.name, dict(node.meta)) for node in module.graph.nodes])
            for name, module in model.named_modules()
            if isinstance(module, GraphModule)
        },
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """The model is bit for bit what `state` saw."""
    after = state(model)
    tensors, expected = after.pop("tensors"), dict(before)
    for name, tensor in expected.pop("tensors").items():
        assert torch.equal(tensor, tensors.pop(name)), name
    assert not tensors
    assert after == expected


class _Values(Interpreter):
    """Runs a graph and keeps, for each affine call, what it was given and what it returned."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.calls: list[tuple[AffineCall, Tensor, Tensor]] = []

    def run_node(self, n: Node) -> Any:
        call = read_affine(self.module, n)
        # An in-place node overwrites what it is given.
        given = self.env[call.input].clone() if isinstance(call, AffineCall) else None
        value = super().run_node(n)
        if isinstance(call, AffineCall) and given is not None:
            self.calls.append((call, given, value.clone()))
        return value


def calling(module: nn.Module) -> GraphModule:
    """A graph that calls the module as `op`, whatever a tracer would do with it."""
    graph = Graph()
    graph.output(graph.call_module("op", (graph.placeholder("x"),)))
    return GraphModule({"op": module.eval()}, graph)


def read_operators(graph_module: GraphModule, *inputs: Tensor) -> list[Operator]:
    """The operators that are read in a graph, each held to what its node computes."""
    run = _Values(graph_module)
    with torch.no_grad():
        run.run(*(each.clone() for each in inputs))
    for call, given, value in run.calls:
        assert_close(value.double(), apply(in_double(call.operator), given.double()), 1e-6)
    return [call.operator for call, _, _ in run.calls]


def refusals(graph_module: GraphModule) -> dict[str, str]:
    """Why nodes that are affine cannot be merged, by their names."""
    read = {node.name: read_affine(graph_module, node) for node in graph_module.graph.nodes}
    return {name: each.reason for name, each in read.items() if isinstance(each, Refusal)}


def rewritten(each: Pass, model: nn.Module, x: Tensor, *, shapes: bool = True) -> PassResult:
    """What a pass makes of a model, checked: outputs and an overwritten input stay the same.

    Args:
        shapes: whether the captured graph knows its shapes.
    """
    result = each.run(capture(model, x if shapes else None))
    expected, seen = x.clone(), x.clone()
    assert_close((model(expected), expected), (result.graph_module(seen), seen))
    return result


def counts(result: PassResult) -> Counter[str]:
    """How many nodes a pass created, replaced and erased."""
    return Counter(edit.action for edit in result.edits)
