"""The published architectures for small images, at any width.

A ResNet-18 with a 3x3 stem of stride 1, as published for CIFAR-10, and torchvision's own
MobileNetV2, VGG-16 and Swin-T whose early strides are left out as far as an image of 16 pixels
demands. The rectifiers are those of the published ones: 17, 35, 15 and 12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fxreduce.cli.errors import unknown_name
from fxreduce.cli.networks import ResidualNetwork
from fxreduce.errors import UnsupportedError, missing_extra

# Channels of the stages, M for a pooling; the last of the published five is left out.
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
# Expansion, channels, blocks, stride; the published strides of the second and sixth are 2.
_MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1),
    (6, 320, 1, 1),
)  # fmt: skip


def small_model(name: str, classes: int, width: float) -> nn.Module:
    """The model called `name`, for images `[N, 3, H, W]` of 16 pixels or more, random weights.

    Args:
        name: `resnet18`, `mobilenet_v2`, `vgg16_bn` or `swin_t`.
        classes: Logits.
        width: Its channels over the published ones.

    Raises:
        UnsupportedError: There is no such model, the width is not positive, or torchvision is not
            installed.
    """
    if name not in _BUILDERS:
        listing = f"there are {', '.join(_BUILDERS)}"
        raise unknown_name(f"there is no small model {name!r}", name, _BUILDERS, listing)
    if not width > 0:
        raise UnsupportedError(f"a width is a number above 0; got {width}")
    try:
        return _BUILDERS[name](classes, width)
    except ImportError:
        raise missing_extra("torchvision", f"small:{name}", "zoo") from None


def _resnet18(classes: int, width: float) -> nn.Module:
    return ResidualNetwork(3, classes, _channels(64, width))


def _mobilenet_v2(classes: int, width: float) -> Any:
    from torchvision.models import MobileNetV2

    module = MobileNetV2(classes, width, [list(stage) for stage in _MOBILENET_V2])
    stem, head = module.features[0], module.features[-1]
    stem[0].stride = (1, 1)
    # torchvision never makes the head narrower than published; the others here are.
    channels = _channels(1280, width)
    head[0] = nn.Conv2d(head[0].in_channels, channels, 1, bias=False)
    head[1] = nn.BatchNorm2d(channels)
    module.classifier[1] = nn.Linear(channels, classes)
    return module


def _vgg16_bn(classes: int, width: float) -> Any:
    from torchvision.models.vgg import VGG, make_layers

    layers = [step if isinstance(step, str) else _channels(step, width) for step in _VGG16]
    module = VGG(make_layers(layers, batch_norm=True), classes)
    module.avgpool = nn.AdaptiveAvgPool2d(1)
    hidden = _channels(4096, width)
    module.classifier[0] = nn.Linear(_channels(512, width), hidden)
    module.classifier[3] = nn.Linear(hidden, hidden)
    module.classifier[6] = nn.Linear(hidden, classes)
    return module


def _swin_t(classes: int, width: float) -> nn.Module:
    from torchvision.models import SwinTransformer

    module: nn.Module = SwinTransformer(
        patch_size=[2, 2],
        embed_dim=3 * _channels(32, width),  # the first stage has three heads
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[4, 4],
        stochastic_depth_prob=0.2,  # as torchvision's Swin-T
        num_classes=classes,
    )
    return module


def _channels(published: int, width: float) -> int:
    return max(1, round(published * width))


_BUILDERS: dict[str, Callable[[int, float], nn.Module]] = {
    "resnet18": _resnet18,
    "mobilenet_v2": _mobilenet_v2,
    "vgg16_bn": _vgg16_bn,
    "swin_t": _swin_t,
}
