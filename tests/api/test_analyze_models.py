"""fxreduce.analyze on torchvision's networks: sites, names and entropies in every dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import fxreduce
from tests.models import Entropies, images, seeded, stored_entropies

SITES = {"resnet18": 17, "mobilenet_v2": 35, "vgg16_bn": 15, "swin_t": 12, "resnet50": 49}
PIXELS = {"swin_t": 64}
AXES = {"swin_t": -1}
KINDS = {"mobilenet_v2": {"relu6"}, "swin_t": {"gelu"}}


@dataclass(frozen=True)
class Case:
    """A network, unequal batches for it, and what its stored pre-activations say."""

    name: str
    model: nn.Module
    batches: Any
    analysis: fxreduce.Analysis
    expected: Entropies


@pytest.fixture(scope="module", params=SITES)
def case(request: pytest.FixtureRequest) -> Case:
    name = request.param
    model = seeded(lambda: getattr(torchvision.models, name)(weights=None))
    batches = images(3, 2, 4, pixels=PIXELS.get(name, 32))
    expected = stored_entropies(model, batches, AXES.get(name, 1))
    return Case(name, model, batches, fxreduce.analyze(model, batches), expected)


def entropies(analysis: fxreduce.Analysis) -> Entropies:
    return {site.name: site.entropy for site in analysis.sites}


def test_every_rectifier_call_is_a_site(case: Case) -> None:
    assert len(case.analysis.sites) == SITES[case.name]
    assert {site.kind for site in case.analysis.sites} == KINDS.get(case.name, {"relu"})


def test_sites_are_named_by_module_path_and_call_in_order_of_execution(case: Case) -> None:
    assert list(entropies(case.analysis)) == list(case.expected)


def test_the_entropy_is_that_of_the_stored_pre_activations(case: Case) -> None:
    assert entropies(case.analysis) == pytest.approx(case.expected, abs=1e-6, rel=0)
    assert max(case.expected.values()) > 0.1


def test_entropies_of_easier_s_code_average_over_batches(case: Case) -> None:
    analysis = fxreduce.analyze(case.model, case.batches, entropy="easier-code", moments=False)
    expected = stored_entropies(case.model, case.batches, AXES.get(case.name, 1), code=True)
    assert entropies(analysis) == pytest.approx(expected, abs=1e-6, rel=0)


def test_a_symbolic_trace_has_the_same_names_and_entropies(case: Case) -> None:
    analysis = fxreduce.analyze(torch.fx.symbolic_trace(case.model), case.batches)
    assert list(entropies(analysis)) == list(case.expected)
    assert entropies(analysis) == pytest.approx(case.expected, abs=1e-6, rel=0)


def test_an_exported_program_has_the_same_names_and_entropies(case: Case) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(case.model, (case.batches[0],), dynamic_shapes=shapes)
    analysis = fxreduce.analyze(exported, case.batches)
    assert list(entropies(analysis)) == list(case.expected)
    assert entropies(analysis) == pytest.approx(case.expected, abs=1e-6, rel=0)


def test_resnet18_names_its_second_call_of_a_rectifier_by_index() -> None:
    model = seeded(lambda: torchvision.models.resnet18(weights=None))
    names = [site.name for site in fxreduce.analyze(model, images(2, pixels=32)).sites]
    assert names[:4] == ["relu", "layer1.0.relu", "layer1.0.relu#1", "layer1.1.relu"]
