"""A site has one name, whatever captured the graph and whatever was removed before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.export import export
from torch.fx import symbolic_trace

from fxreduce.graph.capture import capture
from fxreduce.graph.rectifiers import find_sites
from fxreduce.passes.linearise import Linearise


class Block(nn.Module):
    """One module called twice, and functional ones in between."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc(x))
        x = F.gelu(x) + F.relu(x).relu()
        return self.act(x)


class Model(nn.Module):
    """Modules in a Sequential, each block's called twice, functional ones at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(nn.ReLU()), nn.Sequential(Block(nn.ELU()), nn.SiLU()))
        self.head = nn.ModuleDict({"act": nn.ReLU6(inplace=True)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.blocks(x))
        return self.head["act"](F.relu(x) + 1).relu()


NAMES = [
    "blocks.0.act",
    "blocks.0.gelu",
    "blocks.0.relu",
    "blocks.0.relu#1",
    "blocks.0.act#1",
    "blocks.1.0.act",
    "blocks.1.0.gelu",
    "blocks.1.0.relu",
    "blocks.1.0.relu#1",
    "blocks.1.0.act#1",
    "blocks.1.1",
    "relu",
    "relu#1",
    "head.act",
    "relu#2",
]


def names(model: Any) -> list[str]:
    return [site.name for site in find_sites(capture(model))]


def test_a_site_has_the_same_name_in_a_module_a_traced_and_an_exported_model() -> None:
    model = Model().eval()
    assert names(model) == NAMES
    assert names(symbolic_trace(model)) == NAMES
    assert names(export(model, (torch.randn(2, 4),))) == NAMES


def test_a_module_with_two_paths_is_known_by_the_first_and_to_export_by_the_path_called() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Linear(4, 4), shared, nn.Linear(4, 4), shared).eval()
    assert names(model) == ["0", "0#1", "0#2"]
    assert names(symbolic_trace(model)) == ["0", "0#1", "0#2"]
    # An exported graph has forgotten that they are one module: it has neither state nor identity.
    assert names(export(model, (torch.randn(2, 4),))) == ["0", "2", "4"]


def test_a_site_keeps_its_name_when_an_earlier_call_of_its_module_is_removed() -> None:
    graph_module = capture(Model().eval())
    removed = Linearise(("blocks.0.act", "relu")).run(graph_module).graph_module
    left = [name for name in NAMES if name not in ("blocks.0.act", "relu")]
    assert [site.name for site in find_sites(removed)] == left
    assert names(removed) == left


def test_a_rectifier_added_to_a_captured_graph_gets_a_name_that_is_not_taken() -> None:
    graph_module = capture(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval())
    (site,) = find_sites(graph_module)
    with graph_module.graph.inserting_before(site.node):
        added = graph_module.graph.call_module("1", (site.rectifier.input,))
    site.node.args = (added,)
    assert [each.name for each in find_sites(graph_module)] == ["1#1", "1"]


@pytest.mark.parametrize("root", [nn.ReLU(), nn.GELU()])
def test_a_model_that_is_a_rectifier_has_one_site(root: nn.Module) -> None:
    (site,) = find_sites(capture(root.eval()))
    assert site.rectifier.kind == type(root).__name__.lower()
