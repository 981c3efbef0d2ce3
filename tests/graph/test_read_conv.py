"""Convolutions and Linears are read, in each dialect, as the operators that they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, calling, read_operators, refusals
from torch import Tensor, nn
from torch.export import export
from torch.fx import GraphModule
from torch.nn.utils import parametrizations

from fxreduce.graph.affine import read_affine
from fxreduce.graph.capture import capture
from fxreduce.graph.modules import to_module
from fxreduce.operators.affine import Conv, apply, in_double

SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
MODULES = [
    nn.Conv1d(4, 6, 3),
    nn.Conv1d(4, 6, 3, 2, 2, 2, 2, False, "circular"),
    nn.Conv2d(4, 6, 1),
    nn.Conv2d(4, 4, (3, 2), (1, 2), (1, 0), (2, 1), 4),
    nn.Conv2d(4, 6, 3, padding="valid"),
    nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"),
    nn.Conv3d(4, 6, 2, stride=2, groups=2),
    nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2),
    nn.ConvTranspose2d(4, 6, 3, (2, 3), 1, (1, 2), 1, False, (1, 2)),
    nn.ConvTranspose3d(4, 2, 2),
    nn.Linear(4, 6),
    nn.Linear(4, 6, bias=False),
]


def image(module: Any) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.randn(2, 3, 4)
    return torch.randn(2, 4, *SIZES[module.weight.dim() - 2])


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor], **state: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def only(graph_module: GraphModule, x: Tensor) -> Conv:
    (operator,) = read_operators(graph_module, x)
    assert isinstance(operator, Conv)
    return operator


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_is_read_as_what_it_computes(module: nn.Module) -> None:
    x = image(module)
    operator = only(capture(Wrapped(lambda m, x: m.op(x), op=module).eval()), x)
    assert_close(module(x).double(), apply(in_double(operator), x.double()), 1e-6)
    assert_close(module(x), to_module(operator, module.weight)(x), 1e-6)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_an_exported_module_is_read_alike_or_not_at_all(module: nn.Module) -> None:
    graph_module = capture(
        export(Wrapped(lambda m, x: m.op(x), op=module).eval(), (image(module),))
    )
    read = read_operators(graph_module, image(module))
    # Padding other than by zeros is an operator of its own in ATen.
    assert bool(read) or module.padding_mode != "zeros"


FUNCTIONS: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: F.conv2d(x, m.weight),
    lambda m, x: F.conv2d(x, m.weight, m.bias, 2, 1),
    lambda m, x: F.conv2d(x, m.weight, m.bias, stride=(2, 1), padding=(1, 0), dilation=2),
    lambda m, x: F.conv2d(input=x, weight=m.weight, bias=m.bias, padding="same"),
    lambda m, x: F.conv2d(x, m.weight, padding="valid"),
    lambda m, x: torch.conv2d(x, m.weight, m.bias, (1,), [1, 2]),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_functional_convolution_is_read_in_each_dialect(
    function: Callable[[Any, Tensor], Tensor],
) -> None:
    conv, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 7, 8)
    model = Wrapped(function, weight=conv.weight, bias=conv.bias).eval()
    for graph_module in (capture(model), capture(export(model, (x,)))):
        only(graph_module, x)


TRANSPOSED: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: F.conv_transpose2d(x, m.weight),
    lambda m, x: F.conv_transpose2d(x, m.weight, m.bias, (2, 3), 1, (1, 2), 2, (1, 2)),
    lambda m, x: F.conv_transpose2d(x, m.weight, m.bias, stride=2, output_padding=1, groups=2),
]


@pytest.mark.parametrize("function", TRANSPOSED)
def test_a_functional_transposed_convolution_is_read_in_each_dialect(
    function: Callable[[Any, Tensor], Tensor],
) -> None:
    weight, x = torch.randn(4, 3, 3, 4), torch.randn(2, 4, 7, 8)
    bias = torch.randn(function(Wrapped(function, weight=weight, bias=None), x).shape[1])
    model = Wrapped(function, weight=weight, bias=bias).eval()
    for graph_module in (capture(model), capture(export(model, (x,)))):
        assert only(graph_module, x).transposed


@pytest.mark.parametrize("rank", [1, 3])
def test_functional_convolutions_of_other_ranks_and_linear_are_read(rank: int) -> None:
    conv = (nn.Conv1d, nn.Conv3d)[rank // 2](4, 6, 3, groups=2)
    convolve = (F.conv1d, F.conv3d)[rank // 2]
    model = Wrapped(lambda m, x: convolve(x, m.weight, groups=2), weight=conv.weight).eval()
    for graph_module in (capture(model), capture(export(model, (image(conv),)))):
        assert only(graph_module, image(conv)).groups == 2


def test_a_functional_linear_is_read_in_each_dialect() -> None:
    linear, x = nn.Linear(4, 6), torch.randn(2, 3, 4)
    for function in (
        lambda m, x: F.linear(x, m.weight),
        lambda m, x: F.linear(x, bias=m.bias, weight=m.weight),
    ):
        model = Wrapped(function, weight=linear.weight, bias=linear.bias).eval()
        for graph_module in (capture(model), capture(export(model, (x,)))):
            only(graph_module, x)


def test_decomposed_convolutions_are_read_transposed_ones_too() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, 2)).eval()
    x = torch.randn(2, 4, 9, 7)
    graph_module = capture(export(model, (x,)).run_decompositions())
    operators = read_operators(graph_module, x)
    assert [operator.transposed for operator in operators if isinstance(operator, Conv)] == [
        False,
        True,
    ]


def test_a_weight_that_the_graph_computes_is_not_read() -> None:
    conv, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 7, 8)
    standardised = Wrapped(lambda m, x: F.conv2d(x, m.w / m.w.norm()), w=conv.weight).eval()
    for graph_module in (capture(standardised), capture(export(standardised, (x,)))):
        assert not any(isinstance(each, Conv) for each in read_operators(graph_module, x))


@pytest.mark.parametrize(
    "parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3), lambda: nn.Linear(4, 6)])
def test_a_parametrised_module_is_read_by_its_effective_weight(
    parametrise: Callable[[nn.Module], nn.Module], make: Callable[[], nn.Module]
) -> None:
    module = parametrise(make()).eval()
    for parameter in module.parametrizations.parameters():
        parameter.detach().mul_(1.5)
    operator = only(capture(Wrapped(lambda m, x: m.op(x), op=module).eval()), image(module))
    assert_close(module.weight, operator.weight)


class Scaled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


class Shifted(nn.Conv2d):
    def _conv_forward(self, *args: Any) -> Tensor:
        return super()._conv_forward(*args) + 1


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


class Plain(nn.Conv2d):
    """A subclass that computes what its base does."""


def patched() -> nn.Module:
    conv = nn.Conv2d(4, 6, 3)
    conv.forward = lambda x: x  # type: ignore[method-assign]
    return conv


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Scaled(4, 6, 3), "Scaled overrides the forward of a convolution"),
        (Shifted(4, 6, 3), "Shifted overrides the forward of a convolution"),
        (patched(), "Conv2d overrides the forward of a convolution"),
        (Doubled(4, 6), "Doubled overrides the forward of a Linear"),
    ],
)
def test_a_module_with_a_forward_of_its_own_is_refused(module: nn.Module, kind: str) -> None:
    assert refusals(calling(module)) == {"op": kind}


def test_a_subclass_that_keeps_the_forward_is_read() -> None:
    only(calling(Plain(4, 6, 3)), torch.randn(1, 4, 5, 5))


def test_an_asymmetric_same_padding_is_refused() -> None:
    for graph_module in (
        calling(nn.Conv2d(4, 6, 2, padding="same")),
        capture(
            Wrapped(lambda m, x: F.conv1d(x, m.w, padding="same"), w=torch.ones(6, 4, 4)).eval()
        ),
    ):
        assert list(refusals(graph_module).values()) == [
            "its 'same' padding is one wider on one side"
        ]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_module_with_hooks_is_refused(register: str) -> None:
    conv = nn.Conv2d(4, 6, 3)
    getattr(conv, register)(lambda *args: None)
    reason = "op has forward hooks, which a merged operator would not run"
    assert refusals(calling(conv)) == {"op": reason}


def test_a_transposed_convolution_that_is_told_its_output_size_is_opaque() -> None:
    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 6, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=[10, 10])

    graph_module = capture(Resized().eval())
    assert [read_affine(graph_module, node) for node in graph_module.graph.nodes] == [None] * 3
