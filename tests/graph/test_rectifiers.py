"""Every rectifier in every form and dialect is one site of the same kind; nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import calling
from torch import Tensor, nn
from torch.export import export
from torch.fx import Graph, GraphModule

from fxreduce.errors import UnsupportedError
from fxreduce.graph import rectifiers
from fxreduce.graph.capture import capture
from fxreduce.graph.rectifiers import (
    find_sites,
    parameters_of,
    read_rectifier,
    register_rectifier,
)

Form = Callable[[Tensor], Tensor]


class Calls(nn.Module):
    """Calls one function of its input plus one, so that in-place forms overwrite their own."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.slope = nn.Parameter(torch.tensor([0.2, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x + 1)


@dataclass(frozen=True)
class Case:
    """The forms in which torch has one rectifier."""

    kind: str
    modules: tuple[nn.Module, ...]
    functions: tuple[Form, ...]
    inplace: tuple[Form | nn.Module, ...] = field(default=())


CASES = (
    Case(
        "relu",
        (nn.ReLU(),),
        (F.relu, torch.relu, lambda x: x.relu()),
        (nn.ReLU(inplace=True), lambda x: F.relu(x, True), torch.relu_, lambda x: x.relu_()),
    ),
    Case("relu6", (nn.ReLU6(),), (F.relu6,), (nn.ReLU6(True), lambda x: F.relu6(x, inplace=True))),
    Case(
        "hardtanh",
        (nn.Hardtanh(-2, 2),),
        (F.hardtanh, lambda x: F.hardtanh(x, -0.5, 3)),
        (nn.Hardtanh(inplace=True), F.hardtanh_),
    ),
    Case(
        "leaky_relu",
        (nn.LeakyReLU(0.3),),
        (F.leaky_relu,),
        (nn.LeakyReLU(inplace=True), F.leaky_relu_),
    ),
    Case("rrelu", (nn.RReLU(),), (F.rrelu, torch.rrelu), (nn.RReLU(inplace=True), torch.rrelu_)),
    Case("elu", (nn.ELU(),), (F.elu,), (nn.ELU(inplace=True), F.elu_)),
    Case("selu", (nn.SELU(),), (F.selu, torch.selu), (nn.SELU(True), torch.selu_)),
    Case("celu", (nn.CELU(),), (F.celu, torch.celu), (nn.CELU(inplace=True), torch.celu_)),
    Case(
        "gelu",
        (nn.GELU(), nn.GELU("tanh")),
        (F.gelu, lambda x: F.gelu(x, approximate="tanh")),
    ),
    Case("silu", (nn.SiLU(),), (F.silu,), (nn.SiLU(True), lambda x: F.silu(x, inplace=True))),
    Case("mish", (nn.Mish(),), (F.mish,), (nn.Mish(True),)),
    Case("hardswish", (nn.Hardswish(),), (F.hardswish,), (nn.Hardswish(True),)),
    Case("softplus", (nn.Softplus(2),), (F.softplus,)),
    Case(
        "threshold",
        (nn.Threshold(0.1, 2),),
        (lambda x: F.threshold(x, 0.1, 2),),
        (nn.Threshold(0.1, 2, True), lambda x: torch.threshold_(x, 0.1, 2)),
    ),
)
EVERY = [
    pytest.param(case.kind, form, inplace, id=f"{case.kind}-{place}{'_' * inplace}")
    for case in CASES
    for inplace, forms in ((False, (*case.modules, *case.functions)), (True, case.inplace))
    for place, form in enumerate(forms)
]


def dialects(model: nn.Module, *inputs: Tensor) -> list[GraphModule]:
    model = model.eval()
    return [
        capture(model),
        capture(torch.fx.symbolic_trace(model)),
        capture(export(model, inputs)),
    ]


@pytest.mark.parametrize(("kind", "form", "inplace"), EVERY)
def test_each_form_is_one_site_in_each_dialect(kind: str, form: Form, inplace: bool) -> None:
    for graph_module in dialects(Calls(form), torch.randn(2, 2, 3)):
        (site,) = find_sites(graph_module)
        assert site.rectifier.kind == kind
        assert site.rectifier.inplace is inplace
        assert site.rectifier.elementwise
        assert site.rectifier.input.name.startswith("add")
        assert site.name == ("form" if isinstance(form, nn.Module) else kind)


class Slopes(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.slope) + x.prelu(self.slope)


def test_a_prelu_depends_on_the_channel_in_each_dialect() -> None:
    module = nn.Sequential(nn.PReLU(2), Slopes(F.relu))
    for graph_module in dialects(module, torch.randn(2, 2, 3)):
        sites = find_sites(graph_module)
        assert [site.name for site in sites] == ["0", "1.prelu", "1.prelu#1"]
        assert {site.rectifier.kind for site in sites} == {"prelu"}
        assert not any(site.rectifier.elementwise for site in sites)


def test_a_hardtanh_from_0_to_6_is_a_relu6() -> None:
    for form in (nn.Hardtanh(0, 6), lambda x: F.hardtanh(x, 0.0, 6.0)):
        for graph_module in dialects(Calls(form), torch.randn(2, 2)):
            assert find_sites(graph_module)[0].rectifier.kind == "relu6"


def test_the_numbers_of_a_call_are_read_by_name_or_by_place_in_each_dialect() -> None:
    for form in (nn.Hardtanh(-2, 3), lambda x: F.hardtanh(x, -2, max_val=3)):
        for graph_module in dialects(Calls(form), torch.randn(2, 2)):
            (site,) = find_sites(graph_module)
            numbers = parameters_of(graph_module, site.node, "hardtanh")
            assert numbers == {"min_val": -2, "max_val": 3}
    (site,) = find_sites(graph_module := capture(Calls(F.leaky_relu).eval()))
    assert parameters_of(graph_module, site.node, "leaky_relu") == {"negative_slope": 0.01}


class Gated(nn.Module):
    """Squeeze and excite, a gated linear unit, an attention: decisions that multiply."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.sigmoid(x.mean()) * F.hardsigmoid(x.mean())
        return F.glu(y, -1) * F.softmax(y, -1).sum() * torch.tanh(x.sum())


def test_gates_are_no_sites() -> None:
    for graph_module in dialects(Gated(), torch.randn(2, 4)):
        assert find_sites(graph_module) == ()


class Doubled(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(nn.ReLU):
    """A subclass that computes what its base does."""


def test_a_subclass_is_read_as_its_base_only_where_it_keeps_the_forward() -> None:
    assert find_sites(calling(Renamed()))[0].rectifier.kind == "relu"
    assert find_sites(calling(Doubled())) == ()


def test_a_module_whose_forward_was_replaced_is_not_read() -> None:
    patched = nn.ReLU()
    patched.forward = lambda x: 2 * x
    assert find_sites(calling(patched)) == ()


def test_a_function_of_the_same_name_from_outside_torch_is_not_read() -> None:
    def relu(x: Tensor) -> Tensor:
        return 2 * x

    graph = Graph()
    node = graph.call_function(relu, (graph.placeholder("x"),))
    graph.output(node)
    assert read_rectifier(GraphModule({}, graph), node) is None


class Clipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=-1)


@torch.fx.wrap
def clipped(x: Tensor, low: float = -1) -> Tensor:
    return x.clamp(min=low)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    for name in ("modules", "operations", "functions"):
        monkeypatch.setattr(rectifiers._REGISTRY, name, dict(getattr(rectifiers._REGISTRY, name)))


@pytest.mark.usefixtures("registry")
def test_a_registered_module_and_a_wrapped_function_are_sites() -> None:
    assert find_sites(calling(Clipped())) == ()
    register_rectifier("clip", modules=(Clipped,), functions=(clipped,))
    assert find_sites(calling(Clipped()))[0].rectifier.kind == "clip"

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = Clipped()

        def forward(self, x: Tensor) -> Tensor:
            return clipped(self.act(x), low=-2)

    class KeepsClipped(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Clipped)

    graph = KeepsClipped().trace(model := Model().eval())
    sites = find_sites(capture(GraphModule(model, graph)))
    assert [(site.name, site.rectifier.kind) for site in sites] == [
        ("act", "clip"),
        ("clip", "clip"),
    ]


@pytest.mark.usefixtures("registry")
def test_an_operation_is_registered_for_functions_methods_and_aten_at_once() -> None:
    register_rectifier("tanh", operations=("tanh",))
    for form in (torch.tanh, lambda x: x.tanh(), torch.tanh_):
        for graph_module in dialects(Calls(form), torch.randn(2)):
            assert [site.rectifier.kind for site in find_sites(graph_module)] == ["tanh"]


@pytest.mark.usefixtures("registry")
def test_registering_a_kind_again_adds_to_what_it_is_found_by() -> None:
    register_rectifier("relu", modules=(Clipped,))
    kinds = [find_sites(calling(module))[0].rectifier.kind for module in (nn.ReLU(), Clipped())]
    assert kinds == ["relu", "relu"]


def test_a_rectifier_that_could_not_be_found_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'mine' needs modules, functions or operations"):
        register_rectifier("mine")


def test_a_rectifier_of_a_constant_or_called_by_keyword_is_handled() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    by_name: Any = graph.call_function(F.relu, (), {"input": x, "inplace": True})
    constant: Any = graph.call_function(F.relu, (torch.ones(()).item(),))
    graph.output((by_name, constant))
    graph_module = GraphModule({}, graph)
    read = read_rectifier(graph_module, by_name)
    assert read is not None
    assert (read.input, read.inplace) == (x, True)
    assert read_rectifier(graph_module, constant) is None
