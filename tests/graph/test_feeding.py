from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxreduce.graph.capture import capture
from fxreduce.graph.feeding import Feed, Feeding
from fxreduce.graph.rectifiers import find_sites
from fxreduce.operators.affine import Refusal
from tests.networks import Wiring


def feeds(model: nn.Module, x: Tensor) -> dict[str, Feed | Refusal]:
    graph_module = capture(model.eval(), x)
    feeding = Feeding(graph_module)
    return {site.name: feeding.of(site) for site in find_sites(graph_module)}


IMAGE = torch.randn(2, 3, 8, 8)


def test_the_feeding_layer_is_found_through_a_batch_norm_and_dropout() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.ReLU())
    assert feeds(model, IMAGE) == {"3": Feed("0", 5, 0)}


def test_behind_a_sum_the_blocks_last_convolution_feeds_and_not_the_shortcuts() -> None:
    def block(net: nn.Module, x: Tensor) -> Tensor:
        x = net.first(x)
        y = net.last(torch.relu(net.inner(x)))
        return torch.relu(net.norm(y) + net.shortcut(x))  # the shortcut is computed last

    model = Wiring(
        block,
        first=nn.Conv2d(3, 4, 1),
        inner=nn.Conv2d(4, 4, 3, padding=1),
        last=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        shortcut=nn.Conv2d(4, 4, 1),
    )
    found = feeds(model, IMAGE)
    assert [each.path for each in found.values() if isinstance(each, Feed)] == ["inner", "last"]


def test_an_identity_shortcut_does_not_hide_the_blocks_last_convolution() -> None:
    def block(net: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(net.first(x))
        return torch.relu(x + net.last(torch.relu(net.inner(x))))

    model = Wiring(
        block,
        first=nn.Conv2d(3, 4, 1),
        inner=nn.Conv2d(4, 4, 3, padding=1),
        last=nn.Conv2d(4, 4, 3, padding=1),
    )
    found = feeds(model, IMAGE)
    assert [each.path for each in found.values() if isinstance(each, Feed)] == [
        "first",
        "inner",
        "last",
    ]


def test_a_shared_layer_feeds_both_of_its_sites() -> None:
    model = Wiring(
        lambda net, x: net.act(net.mix(net.act(net.mix(x)))), mix=nn.Linear(3, 3), act=nn.GELU()
    )
    assert feeds(model, torch.randn(2, 3)) == {"act": Feed("mix", 3, 0), "act#1": Feed("mix", 3, 0)}


def test_the_output_channels_of_a_transposed_convolution_are_axis_one() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 7, 2), nn.ReLU())
    assert feeds(model, IMAGE) == {"1": Feed("0", 7, 1)}


def test_what_no_single_layer_feeds_is_refused_with_the_reason() -> None:
    def several(net: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(x)
        x = torch.relu(x * 2)
        return torch.relu(torch.cat([net.one(x), net.two(x)], 1))

    found = feeds(Wiring(several, one=nn.Conv2d(3, 2, 1), two=nn.Conv2d(3, 2, 1)), IMAGE)
    reasons = [each.reason for each in found.values() if isinstance(each, Refusal)]
    assert reasons == [
        "no convolution or linear feeds it",
        "the rectifier relu feeds it",
        "cat, which feeds it, joins several values",
    ]


@pytest.mark.parametrize(
    ("name", "sites"), [("resnet18", 17), ("mobilenet_v2", 35), ("vgg16_bn", 15), ("swin_t", 12)]
)
def test_every_site_of_the_papers_models_has_a_feeding_layer_of_its_own(
    name: str, sites: int
) -> None:
    import torchvision

    with torch.device("meta"):
        graph_module = capture(getattr(torchvision.models, name)().eval())
    feeding = Feeding(graph_module)
    found = [feeding.of(site) for site in find_sites(graph_module)]
    assert len({each.path for each in found if isinstance(each, Feed)}) == len(found) == sites


def test_the_last_convolutions_of_the_blocks_of_resnet18_feed_the_sites_behind_the_sums() -> None:
    import torchvision

    with torch.device("meta"):
        graph_module = capture(torchvision.models.resnet18().eval())
    feeding = Feeding(graph_module)
    found = [feeding.of(site) for site in find_sites(graph_module) if "#1" in site.name]
    paths = [each.path for each in found if isinstance(each, Feed)]
    assert paths == [f"layer{layer}.{block}.conv2" for layer in (1, 2, 3, 4) for block in (0, 1)]
