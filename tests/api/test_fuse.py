"""fxreduce.fuse on torchvision's networks: equal to 1e-9, and which batch-norms are left."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule

import fxreduce
from tests.models import images, seeded

PIXELS = {"swin_t": 64}
# Affine operators (convolutions, Linears, batch-norms) before and after. Each batch-norm goes into
# the convolution before it; densenet's first ones of a layer, behind a cat and before a rectifier,
# have no neighbour to go into. Swin's attention is one opaque call in a symbolic trace; an exported
# program shows its Linears.
OPERATORS = {
    "resnet18": (41, 21),
    "mobilenet_v2": (105, 53),
    "vgg16_bn": (29, 16),
    "densenet121": (242, 183),
    "regnet_y_400mf": (139, 86),
    "swin_t": (29, 29),
}
# What an exported program spells out of attention, symbolic traces keep whole.
EXPORTED = OPERATORS | {"swin_t": (65, 65)}
DENSE_LAYERS = (6, 12, 24, 16)
KEPT_BY_DENSENET = {
    *(
        f"features.denseblock{block}.denselayer{layer}.norm1"
        for block, layers in enumerate(DENSE_LAYERS, 1)
        for layer in range(1, layers + 1)
    ),
    *(f"features.transition{block}.norm" for block in (1, 2, 3)),
    "features.norm5",
}


@dataclass(frozen=True)
class Case:
    name: str
    model: nn.Module
    x: Tensor
    expected: Tensor
    fused: GraphModule


@pytest.fixture(scope="module", params=OPERATORS)
def case(request: pytest.FixtureRequest) -> Case:
    name = request.param
    model = seeded(lambda: getattr(torchvision.models, name)(weights=None)).double()
    (x,) = images(2, pixels=PIXELS.get(name, 32), dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
    return Case(name, model, x, expected, fxreduce.fuse(model))


def apart(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().max() / expected.abs().max())


def batch_norms(module: nn.Module) -> set[str]:
    kinds = nn.modules.batchnorm._BatchNorm
    return {name for name, each in module.named_modules() if isinstance(each, kinds)}


def test_the_output_is_equal_to_1e_9(case: Case) -> None:
    with torch.no_grad():
        assert apart(case.fused(case.x), case.expected) < 1e-9
        other = torch.cat([case.x, -case.x, 2 * case.x])
        assert apart(case.fused(other), case.model(other)) < 1e-9


def test_no_batch_norm_is_left_that_has_a_neighbour_to_go_into(case: Case) -> None:
    expected = KEPT_BY_DENSENET if case.name == "densenet121" else set()
    assert batch_norms(case.fused) == expected


def test_the_number_of_operators_is_pinned(case: Case) -> None:
    report = fxreduce.report(case.fused)
    assert (report.operators_before, report.operators_after) == OPERATORS[case.name]
    assert report.removed == ()


def test_an_exported_program_is_fused_as_far_and_as_exactly(case: Case) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(case.model, (case.x,), dynamic_shapes=shapes)
    fused = fxreduce.fuse(exported)
    with torch.no_grad():
        assert apart(fused(case.x), case.expected) < 1e-9
    report = fxreduce.report(fused)
    assert (report.operators_before, report.operators_after) == EXPORTED[case.name]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_with_half_of_the_rectifiers_gone_merged_equals_unmerged(name: str) -> None:
    model = seeded(lambda: getattr(torchvision.models, name)(weights=None)).double()
    (x,) = images(2, pixels=64, dtype=torch.float64)
    plan = fxreduce.analyze(model, [x]).plan(budget=0.5, compensate="identity")
    unmerged = fxreduce.linearize(model, plan.sites)
    merged = plan.apply(model)
    with torch.no_grad():
        assert apart(merged(x), unmerged(x)) < 1e-9
    report = fxreduce.report(merged)
    assert report.max_error < 1e-9
    # Behind one another resnet18's 3x3 convolutions are padded, so that none merges exactly.
    assert report.operators_after < OPERATORS[name][1] + (name == "resnet18")
    assert report.macs_after <= report.macs_before


def test_whole_inverted_residual_blocks_become_one_convolution() -> None:
    model = seeded(lambda: torchvision.models.mobilenet_v2(weights=None)).double()
    (x,) = images(2, pixels=64, dtype=torch.float64)
    reduced = fxreduce.apply(model, [x], budget=2, include=["features.3.*"])
    assert isinstance(reduced.features, nn.Module)
    block = [
        each
        for name, each in reduced.named_modules()
        if name.startswith("features.3.") and isinstance(each, nn.Conv2d)
    ]
    assert [(conv.kernel_size, conv.groups) for conv in block] == [((3, 3), 1)]
    assert fxreduce.report(reduced).max_error < 1e-9


class Twice(nn.Module):
    """A convolution that is called twice, each time before a batch-norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.conv(self.one(self.conv(x)).relu()))


class Forked(nn.Module):
    """One convolution's output, normalised in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.one(y) * self.two(y)


class AxisOne(nn.Module):
    """Linear on the last axis, then BatchNorm1d, which normalises axis 1 of as many entries."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.flatten(2)[:, :, :8].repeat(1, 3, 1)[:, :8]))


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return nn.functional.batch_norm(
            self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, False
        )


class Tied(nn.Module):
    """Two convolutions with one weight, each before a batch-norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.b.weight = self.a.weight
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.b(self.one(self.a(x)).relu()))


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("dialect", ["module", "trace", "export"])
@pytest.mark.parametrize("make", [Twice, Forked, AxisOne, FunctionalNorm, Tied])
def test_fusing_is_right_where_torch_s_own_is_wrong(
    make: type[nn.Module], dialect: str, example: bool
) -> None:
    model = seeded(make).double()
    (x,) = images(4, dtype=torch.float64)
    form: Any = model
    if dialect == "trace":
        form = torch.fx.symbolic_trace(model)
    elif dialect == "export":
        form = torch.export.export(model, (x,))
    fused = fxreduce.fuse(form, example_inputs=x if example else None)
    with torch.no_grad():
        assert apart(fused(x), model(x)) < 1e-9


def test_fusing_twice_changes_nothing_more() -> None:
    model = seeded(lambda: torchvision.models.resnet18(weights=None))
    once = fxreduce.fuse(model)
    twice = fxreduce.fuse(once)
    assert once.code == twice.code
    assert all(map(torch.equal, once.state_dict().values(), twice.state_dict().values()))


def test_example_inputs_tell_shapes_and_check_every_merge() -> None:
    model = seeded(lambda: torchvision.models.mobilenet_v2(weights=None)).double()
    (x,) = images(2, pixels=32, dtype=torch.float64)
    report = fxreduce.report(fxreduce.fuse(model, example_inputs=x))
    assert report.max_error < 1e-9
    assert report.macs_before == report.macs_after > 0
    report = fxreduce.report(fxreduce.fuse(model))
    assert (report.max_error, report.macs_before, report.macs_after) == (None, None, None)


def test_approximate_fusing_is_refused() -> None:
    with pytest.raises(fxreduce.UnsupportedError, match=r"fuse merges exactly; approximate"):
        fxreduce.fuse(seeded(Twice), exact=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": "gold"}, r"cost is a CostModel or one of 'flops', 'latency'; seen: 'gold'"),
        ({"disable": ["magic"]}, r"names of passes \(drop_checks, .*\); seen: 'magic'"),
    ],
)
def test_unknown_names_are_refused_with_the_valid_ones(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(fxreduce.UnsupportedError, match=message):
        fxreduce.fuse(seeded(Twice), **options)


def test_example_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(fxreduce.CaptureError, match=r"does not run on the example inputs: Given"):
        fxreduce.fuse(seeded(Twice), example_inputs=torch.randn(2, 4, 8, 8))


def test_the_weights_of_the_given_model_are_not_shared() -> None:
    model = seeded(Twice)
    fused = fxreduce.fuse(model)
    expected = copy.deepcopy(model)(torch.ones(1, 3, 2, 2))
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert torch.equal(model(torch.ones(1, 3, 2, 2)), expected)
