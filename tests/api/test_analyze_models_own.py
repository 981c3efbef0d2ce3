"""fxreduce.analyze on every kind of layout, rectifier and dtype, against stored pre-activations."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from tests.models import (
    Functional,
    Residual,
    Small,
    entropy_of,
    images,
    points,
    seeded,
    snapshot,
    stored_entropies,
)


def of(analysis: fxreduce.Analysis) -> dict[str, float]:
    return {site.name: site.entropy for site in analysis.sites}


def conv(rank: int) -> nn.Module:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    return nn.Sequential(layer(2, 5, 3), nn.PReLU(5), layer(5, 3, 1, bias=False), nn.SiLU())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.act = nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU()
        self.down = nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


@pytest.mark.parametrize(
    ("make", "shape", "axis"),
    [
        pytest.param(lambda: conv(1), (2, 11), 1, id="Conv1d"),
        pytest.param(lambda: conv(2), (2, 7, 5), 1, id="Conv2d"),
        pytest.param(lambda: conv(3), (2, 5, 4, 6), 1, id="Conv3d"),
        pytest.param(Tokens, (7, 6), -1, id="tokens"),
        pytest.param(Tokens, (3, 4, 6), -1, id="channels last"),
        pytest.param(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU6()), (4,), -1, id="Linear"),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.3)),
            (4,),
            -1,
            id="Linear and BatchNorm1d",
        ),
    ],
)
def test_the_channel_axis_follows_the_layout(
    make: Callable[[], nn.Module], shape: tuple[int, ...], axis: int
) -> None:
    model = seeded(make)
    torch.manual_seed(3)
    batches = [torch.randn(count, *shape) for count in (4, 1, 6)]
    expected = stored_entropies(model, batches, axis)
    assert of(fxreduce.analyze(model, batches)) == pytest.approx(expected, abs=1e-6, rel=0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_counted_exactly(dtype: torch.dtype, inplace: bool) -> None:
    model = seeded(lambda: Small(inplace=inplace)).to(dtype)
    batches = images(3, 2, dtype=dtype)
    expected = stored_entropies(model, batches)
    assert of(fxreduce.analyze(model, batches)) == pytest.approx(expected, abs=1e-6, rel=0)


def test_functional_rectifiers_are_sites_of_the_module_that_calls_them() -> None:
    model, x = seeded(Functional), points(20, 6)
    one = model.one(x)
    two = model.two(one.relu())
    three = model.three(two.relu())
    analysis = fxreduce.analyze(model, [x])
    assert [(site.name, site.kind) for site in analysis.sites] == [
        ("relu", "relu"),
        ("relu#1", "relu"),
        ("gelu", "gelu"),
    ]
    for site, z in zip(analysis.sites, (one, two, three), strict=True):
        assert site.channel_entropy.tolist() == pytest.approx(entropy_of(z, -1).tolist())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_rectifier_behind_a_rectifier_is_measured_on_its_own(inplace: bool) -> None:
    rectifiers = nn.LeakyReLU(0.2, inplace), nn.PReLU(5), nn.ReLU(inplace)
    model = seeded(lambda: nn.Sequential(nn.Conv1d(2, 5, 3), *rectifiers))
    batches = [points(4, 22).view(4, 2, 11)]
    expected = stored_entropies(model, batches)
    analysis = fxreduce.analyze(model, batches)
    assert list(of(analysis)) == ["1", "2", "3"]
    assert of(analysis) == pytest.approx(expected, abs=1e-6, rel=0)


def test_in_place_rectifiers_are_measured_before_they_overwrite() -> None:
    model, batches = seeded(Residual), images(3, 4)
    analysis = fxreduce.analyze(model, batches)
    assert of(analysis) == pytest.approx(stored_entropies(model, batches), abs=1e-6, rel=0)
    assert [site.name for site in analysis.sites] == ["relu", "relu#1"]


def test_zeros_are_left_out_by_the_paper_and_on_by_the_published_code() -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU()).eval()
    z = torch.tensor([[1.0], [-1.0], [0.0], [-0.0]])
    paper, code = (
        fxreduce.analyze(model, [z], entropy=variant).sites[0]
        for variant in ("paper", "easier-code")
    )
    assert paper.entropy == 1.0
    assert code.entropy == pytest.approx(float(entropy_of(z, 1, code=True)))
    assert paper.on_probability.tolist() == [0.5]


def test_a_channel_axis_can_be_chosen() -> None:
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU())), torch.randn(5, 3, 4)
    z = model[0](x)
    site = fxreduce.analyze(model, [x], axes={"1": -2}).sites[0]
    assert site.channel_entropy.tolist() == pytest.approx(entropy_of(z, 1).tolist())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"relu": -1}, r"the model has no site 'relu'; its sites are act, act2"),
        ({"act": 1}, r"counted from the right: -1 is the last one; seen: 1 for act"),
    ],
)
def test_an_axis_for_no_site_or_from_the_left_is_refused(
    axes: dict[str, int], message: str
) -> None:
    with pytest.raises(fxreduce.PlanError, match=message):
        fxreduce.analyze(seeded(Small), images(2), axes=axes)


def test_the_result_is_readable_and_machine_readable() -> None:
    analysis = fxreduce.analyze(seeded(Small), images(2))
    content: dict[str, Any] = json.loads(analysis.to_json())
    assert [site["name"] for site in content["sites"]] == ["act", "act2"]
    assert content["sites"][0]["entropy"] == analysis.sites[0].entropy
    assert len(content["sites"][0]["channel_entropy"]) == 8
    header, _, *rows = analysis.table().splitlines()
    assert header.split()[:3] == ["site", "kind", "channels"]
    assert [row.split()[:3] for row in rows] == [["act", "relu", "8"], ["act2", "relu", "8"]]


@pytest.mark.parametrize("hooked", [False, True])
def test_the_model_is_left_as_it_was(hooked: bool) -> None:
    model = seeded(Residual)
    model.conv1.weight.requires_grad_(False)
    if hooked:
        model.relu.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    fxreduce.analyze(model, images(2)).plan(budget=1)
    assert snapshot(model) == before


def test_gradients_are_neither_needed_nor_left_behind() -> None:
    model = seeded(Small)
    with torch.inference_mode():
        inside = of(fxreduce.analyze(model, images(3)))
    assert inside == of(fxreduce.analyze(model, images(3)))
    assert all(parameter.grad is None for parameter in model.parameters())
