from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxreduce.graph.capture import capture
from fxreduce.schedules.alive import alive


class Modal(nn.Module):
    """Functional dropout, by name and by place, and functional batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        x = functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, 0.1
        )
        x = functional.dropout(self.mix(x), 0.5, training=self.training)
        return functional.dropout(x, 0.5, self.training)


def test_functional_calls_follow_the_mode_of_the_module_as_the_model_does() -> None:
    model = Modal().eval()
    living = alive(capture(model))
    x = torch.randn(16, 4)
    for training in (True, False, True):
        model.train(training)
        living.train(training)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(living(x), expected)
    assert torch.equal(living.state_dict()["norm.running_mean"], model.norm.running_mean)


def test_a_graph_without_such_calls_stays_as_it_is() -> None:
    graph_module = capture(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval())
    assert alive(graph_module).code == graph_module.code


def test_an_exported_program_follows_the_mode_too() -> None:
    x = torch.randn(64, 4)
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval(), (x,))
    living = alive(capture(exported))
    with torch.no_grad():
        assert torch.equal(living.eval()(x), exported.module()(x))
        assert bool((living.train()(x) == 0).any())


def test_stochastic_depth_of_torchvision_follows_the_mode() -> None:
    from torchvision.ops import StochasticDepth

    living = alive(capture(nn.Sequential(nn.Linear(2, 2), StochasticDepth(0.5, "row")).eval()))
    x = torch.ones(64, 2)
    rows = living.train()(x).eq(0).all(1)
    assert 0 < int(rows.sum()) < 64
    assert not bool(living.eval()(x).eq(0).all(1).any())
