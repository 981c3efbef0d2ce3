"""Observers change no value, bit for bit, and stand at the sites that were asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_unchanged, state
from hypothesis import given
from networks import Network
from strategies import networks
from torch import Tensor, nn

from fxreduce.errors import CalibrationError
from fxreduce.graph.capture import capture
from fxreduce.graph.rectifiers import find_sites
from fxreduce.passes.observe import Observe, observers, site_axis


@given(networks())
def test_a_graph_with_observers_computes_the_same_bits(drawn: tuple[Network, Tensor]) -> None:
    net, x = drawn
    graph_module = capture(net, x)
    before, sites = state(graph_module), find_sites(graph_module)
    result = Observe().run(graph_module)
    assert_unchanged(graph_module, before)
    assert len(observers(result.graph_module)) == len(sites)
    given_to_net, given_to_result = x.clone(), x.clone()
    with torch.no_grad():
        expected, seen = net(given_to_net), result.graph_module(given_to_result)
    for a, b in zip(expected, seen, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(given_to_net, given_to_result)


class Behind(nn.Module):
    """Rectifiers one behind the other, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.act(self.act(F.leaky_relu(x + 1))))


def test_rectifiers_one_behind_the_other_are_all_observed() -> None:
    x = torch.randn(4, 3)
    result = Observe().run(capture(Behind().eval(), x))
    names = [observer.site for observer in observers(result.graph_module)]
    assert names == ["leaky_relu", "act", "act#1", "gelu"]
    assert torch.equal(Behind()(x), result.graph_module(x))


def test_only_the_sites_that_were_asked_for_are_observed_along_the_axis_given() -> None:
    graph_module = capture(Behind().eval(), torch.randn(4, 3))
    result = Observe(sites=("act", "gelu"), axes={"gelu": -2}).run(graph_module)
    assert [(each.site, each.channel_axis) for each in observers(result.graph_module)] == [
        ("act", -1),
        ("gelu", -2),
    ]


def test_a_prelu_has_its_channels_on_axis_1_also_behind_a_linear() -> None:
    model, x = nn.Sequential(nn.Linear(5, 5), nn.PReLU(2)).eval(), torch.randn(3, 2, 4, 5)
    (observer,) = observers(Observe().run(capture(model, x)).graph_module)
    assert observer.channel_axis == -3


def test_without_the_shape_of_a_pre_activation_it_cannot_be_observed() -> None:
    graph_module = capture(Behind().eval())
    with pytest.raises(CalibrationError, match="shape of the pre-activation of leaky_relu is not"):
        site_axis(graph_module, find_sites(graph_module)[0])


class Normed(nn.Module):
    """Batch-norms before rectifiers: of a module and a function, read once and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU6(inplace=True)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        y = F.relu(F.batch_norm(x, self.mean, self.variance))
        z = F.batch_norm(x + y, self.mean, self.variance)
        return F.relu(z) + z + F.gelu(F.batch_norm(y, self.mean, self.variance))


def seen_by(model: nn.Module, x: Tensor) -> dict[str, tuple[bool, bool]]:
    """Of each site, whether its observer normalises too, and whether it overwrites its input."""
    result = Observe().run(capture(model, x))
    for inputs in (x, torch.randn(5, *x.shape[1:])):
        assert torch.equal(model(inputs.clone()), result.graph_module(inputs.clone()))
    watching = observers(result.graph_module)
    return {each.site: (each.norm is not None, each.in_place) for each in watching}


def test_a_batch_norm_that_only_the_site_reads_is_computed_by_the_observer() -> None:
    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        assert seen_by(model, x) == {
            "act": (True, True),  # nobody else reads the convolution
            "relu": (True, False),  # x is read once more
            "relu#1": (False, False),  # the batch-norm is
            "gelu": (False, False),  # no rectifier for blocks
        }


def test_a_batch_norm_with_hooks_or_the_batchs_own_statistics_is_called_itself() -> None:
    x = torch.randn(4, 3, 9, 9)
    hooked = Normed().eval()
    hooked.bn.register_forward_hook(lambda module, given, output: output * 2)
    own = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()).eval()
    with torch.no_grad():
        assert seen_by(hooked, x)["act"] == (False, True)
        assert seen_by(own, x) == {"1": (False, False)}
