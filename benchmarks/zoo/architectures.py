"""Every architecture of torchvision and timm by name, and how each is built and fed.

A name may end in options for the builder, as `timm:twins_svt_small?depths=(1,1,1,1)`: a smaller
variant, for families whose smallest named one is too large for the tests.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection, quantization, segmentation, video

SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
FRAMES = (4, 8, 16)
# Smaller variants of families whose smallest name is large or slow: fewer or narrower layers.
SMALL = (
    "timm:beit_base_patch16_224?embed_dim=64&depth=2&num_heads=4",
    "timm:cait_xxs24_224?depth=2&depth_token_only=1",
    "timm:davit_tiny?depths=(1,1,1,1)&embed_dims=(32,64,96,128)&num_heads=(1,2,3,4)",
    "timm:deepseek_vit_412m?embed_dim=64&depth=2&num_heads=4",
    "timm:efficientformer_l1?depths=(1,1,1,2)",
    "timm:hiera_tiny_224?stages=(1,1,1,1)&embed_dim=32",
    "timm:mobilenetv5_base?channel_multiplier=0.125",
    "timm:naflexvit_base_patch16_gap?embed_dim=64&depth=2&num_heads=4",
    "timm:qwen3_vit_88m?embed_dim=64&depth=2&num_heads=4",
    "timm:res2next50?layers=(1,1,1,1)",
    "timm:sam2_hiera_tiny?embed_dim=32",
    "timm:samvit_base_patch16_224?embed_dim=64&depth=2&num_heads=4",
    "timm:sequencer2d_s?layers=(1,1,1,1)",
    "timm:swin_s3_tiny_224?depths=(1,1,1,1)&embed_dim=48",
    "timm:swinv2_cr_tiny_224?depths=(1,1,1,1)&embed_dim=48",
    "timm:swinv2_tiny_window16_256?depths=(1,1,1,1)&embed_dim=48",
    "timm:tiny_vit_5m_224?depths=(1,1,1,1)",
    "timm:tnt_s_legacy_patch16_224?depth=2",
    "timm:tresnet_m?layers=(1,1,1,1)",
    "timm:twins_svt_small?depths=(1,1,1,1)",
    "timm:vgg11?mlp_ratio=0.05",
    "timm:vitamin_small_224?depth=2",
    "timm:xcit_nano_12_p16_224?depth=2",
)
Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Input:
    """What a model is built and fed with.

    Attributes:
        shape: of its input, [N, C, H, W] or [N, C, T, H, W].
        image_size: passed to the builder as `img_size`, for models that take one size alone.
    """

    shape: tuple[int, ...]
    image_size: int | None = None

    @classmethod
    def of(cls, content: dict[str, Any]) -> Input:
        return cls(tuple(content["shape"]), content["image_size"])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def random(self, generator: torch.Generator, batch: int) -> Tensor:
        """Standard normal numbers in this shape, for a batch of `batch`."""
        return torch.randn((batch, *self.shape[1:]), generator=generator)


def names() -> list[str]:
    """All names, as `LIBRARY:NAME`; `.backbone` stands for the backbone of a detector alone."""
    found = [f"timm:{name}" for name in timm.list_models()]
    for module in (models, segmentation, video, quantization):
        found += [f"torchvision:{name}" for name in models.list_models(module=module)]
    found += [f"torchvision:{name}.backbone" for name in models.list_models(module=detection)]
    return found


def family(name: str) -> str:
    """The family that a name belongs to: the module of its library that has its builder."""
    library, rest, _ = _parts(name)
    if library == "timm":
        return f"timm:{timm.models.model_entrypoint(rest).__module__.rpartition('.')[2]}"
    builder = models.get_model_builder(rest.removesuffix(".backbone"))
    inside = builder.__module__.removeprefix("torchvision.models.")
    return f"torchvision:{inside}"


def build(name: str, chosen: Input) -> nn.Module:
    """The architecture in eval mode with the library's own initial weights."""
    library, rest, options = _parts(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on deprecated names and on how weights are drawn
        make = _timm(rest) if library == "timm" else _torchvision(rest)
        if chosen.image_size is not None:
            options["img_size"] = chosen.image_size
        return make(**options).eval()


def _parts(name: str) -> tuple[str, str, dict[str, Any]]:
    """The library, the name in it, and the options for the builder."""
    named, _, given = name.partition("?")
    library, _, rest = named.partition(":")
    pairs = (each.partition("=") for each in filter(None, given.split("&")))
    return library, rest, {key: ast.literal_eval(value) for key, _, value in pairs}


def _timm(name: str) -> Build:
    return partial(timm.create_model, name, pretrained=False)


def _torchvision(name: str) -> Build:
    builder = models.get_model_builder(name.removesuffix(".backbone"))
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # the default would download weights
    if name.startswith(("googlenet", "inception_v3")):
        options["init_weights"] = True
    make = partial(builder, **options)
    if not name.endswith(".backbone"):
        return make
    return lambda **given: make(**given).backbone


def candidates(name: str) -> Iterator[Input]:
    """Inputs to try, the smallest first."""
    library, rest, _ = _parts(name)
    if library != "timm":
        if models.get_model_builder(rest.removesuffix(".backbone")).__module__.startswith(
            video.__name__
        ):
            yield from (Input((2, 3, t, s, s)) for t in FRAMES for s in SIZES if s <= 224)
        else:
            yield from (Input((2, 3, size, size)) for size in SIZES)
        return
    channels, height, width = timm.models.get_pretrained_cfg(rest).input_size
    for size in SIZES:
        yield Input((2, channels, size, size))
        yield Input((2, channels, size, size), image_size=size)
    yield Input((2, channels, height, width))


def smallest_input(name: str) -> Input:
    """The first candidate that the architecture can be built for and takes.

    Raises:
        ValueError: it takes none of them; the message is what the last one raised.
    """
    refused: Exception | None = None
    built: tuple[int | None, nn.Module] | None = None
    for candidate in candidates(name):
        try:
            if built is None or built[0] != candidate.image_size:
                built = candidate.image_size, on_meta(name, candidate)
            with torch.no_grad():
                built[1](torch.empty(candidate.shape, device="meta"))
        except Exception as error:  # whatever a model says of an input that it does not take
            refused = error
        else:
            return candidate
    raise ValueError(f"takes no input that was tried: {refused}")


def on_meta(name: str, chosen: Input) -> nn.Module:
    """The architecture without memory for its weights."""
    try:
        with torch.device("meta"):
            return build(name, chosen).to("meta")
    except (RuntimeError, NotImplementedError):  # it reads a value while it is built
        return build(name, chosen).to("meta")
