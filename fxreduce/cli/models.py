"""From a model's name on the command line to a module in eval mode and the images that it takes.

Nothing is ever downloaded: weights are random unless a file is given.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fxreduce.cli.errors import UsageError, unknown_name
from fxreduce.cli.small_models import small_model
from fxreduce.cli.text_models import text_classifier
from fxreduce.data.formats import ImageFormat, TextFormat
from fxreduce.errors import UnsupportedError, missing_extra

_FORMS = (
    "a model is named torchvision:NAME, timm:NAME, small:NAME, transformers:NAME or "
    "path/to/file.py:FACTORY"
)
_DEFAULT_SIZE = 32
_SMALL_CLASSES, _TEXT_CLASSES = 10, 2  # where no data set says
_SMALL_IMAGES = ImageFormat.of(3, (32, 32))


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode, and the images that it takes; None where it takes text."""

    name: str
    module: nn.Module
    images: ImageFormat | None


def load_model(
    name: str,
    *,
    size: int | None = None,
    seed: int = 0,
    classes: int | None = None,
    width: float = 1.0,
) -> LoadedModel:
    """Build the model called `name` with random weights drawn from `seed`.

    Args:
        name: `torchvision:NAME`, `timm:NAME`, `small:NAME`, `transformers:NAME` or
            `path/to/file.py:FACTORY`.
        size: Height and width of its images in pixels; by default what the model was made for.
        seed: Seed of the random weights.
        classes: How many classes it tells apart; by default as many as its library says. A
            factory in a file decides for itself.
        width: Of a `small` model: its channels over the published ones.

    Raises:
        UnsupportedError: The name is unknown (the message has the closest ones), a package is
            missing, the factory does not return a module, or a width is given to a model that has
            but one.
        UsageError: The file does not exist or cannot be imported.
    """
    source, colon, rest = name.partition(":")
    if width != 1.0 and source != "small":
        raise UnsupportedError(f"small models alone have a width; {name} is no such model")
    torch.manual_seed(seed)
    images: ImageFormat | None
    if colon and source == "torchvision":
        module, images = _torchvision(rest, classes)
    elif colon and source == "timm":
        module, images = _timm(rest, classes)
    elif colon and source == "small":
        module, images = small_model(rest, classes or _SMALL_CLASSES, width), _SMALL_IMAGES
    elif colon and source == "transformers":
        module, images = text_classifier(rest, classes or _TEXT_CLASSES), None
    elif ".py:" in name:
        module, images = _from_file(*name.rsplit(":", 1))
    elif not colon and not name.endswith(".py"):
        raise UnsupportedError(
            f"{_FORMS}; got {name!r}. Did you mean torchvision:{name} or timm:{name}?"
        )
    else:
        raise UnsupportedError(f"{_FORMS}; got {name!r}")
    if size is not None and images is not None:
        images = ImageFormat(images.channels, (size, size), images.mean, images.std)
    return LoadedModel(name, module.eval(), images)


def data_format(model: LoadedModel, tokenizer: Path | None) -> ImageFormat | TextFormat:
    """What the model's data are brought into.

    Raises:
        UsageError: It takes text, and there is no tokenizer.
    """
    if tokenizer is not None:
        return TextFormat(tokenizer, tuple(inspect.signature(model.module.forward).parameters))
    if model.images is None:
        raise UsageError(
            f"{model.name} takes text: name the folder of its tokenizer with --tokenizer FOLDER"
        )
    return model.images


def _torchvision(name: str, classes: int | None) -> tuple[nn.Module, ImageFormat]:
    try:
        from torchvision import models
    except ImportError:
        raise missing_extra("torchvision", f"torchvision:{name}", "zoo") from None
    images_in = [models, models.segmentation]  # the others take videos, pairs or lists of images
    known = [found for module in images_in for found in models.list_models(module=module)]
    if name not in known:
        raise unknown_name(
            f"torchvision has no image model {name!r}",
            name,
            known,
            "torchvision.models.list_models() lists all models",
        )
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if classes is not None:
        options["num_classes"] = classes
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # the default would download ImageNet weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on how inception draws its random weights
        module = builder(**options)
    return module, ImageFormat.of(_input_channels(module), _torchvision_size(name, module))


def _torchvision_size(name: str, module: nn.Module) -> tuple[int, int]:
    """The crop that the published weights were evaluated with, 224 pixels where there is none."""
    from torchvision import models

    side: int | None = getattr(module, "image_size", None)  # a vision transformer takes no other
    if side is None:
        crop = getattr(models.get_model_weights(name).DEFAULT.transforms(), "crop_size", [224])
        side = int(crop[0])
    return side, side


def _timm(name: str, classes: int | None) -> tuple[nn.Module, ImageFormat]:
    try:
        import timm
    except ImportError:
        raise missing_extra("timm", f"timm:{name}", "zoo") from None
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        what = f"timm has no model {name!r}"
        raise unknown_name(what, name, known, "timm.list_models() lists them")
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    except RuntimeError as error:  # a known architecture with an unknown weights tag
        raise UnsupportedError(f"timm cannot build {name!r}: {error}") from error
    settings: dict[str, Any] = module.default_cfg  # type: ignore[assignment]
    height, width = settings["input_size"][1:]
    statistics = tuple(settings["mean"]), tuple(settings["std"])
    return module, ImageFormat.of(_input_channels(module), (height, width), statistics)


def _from_file(file: str, factory_name: str) -> tuple[nn.Module, ImageFormat]:
    factory = _factory(_import(Path(file)), file, factory_name)
    try:
        module = factory()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{factory_name}() of {file} raised {reason}") from error
    if not isinstance(module, nn.Module):
        raise UnsupportedError(
            f"{factory_name}() of {file} must return a torch.nn.Module; "
            f"it returned {type(module).__name__}"
        )
    return module, ImageFormat.of(_input_channels(module), (_DEFAULT_SIZE, _DEFAULT_SIZE))


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}; {_FORMS}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file; {_FORMS}")
    module = importlib.util.module_from_spec(spec)
    # As `python file.py` does, so that the file finds the modules beside it.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"importing {path} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module


def _factory(module: ModuleType, file: str, name: str) -> Callable[[], Any]:
    callables = [key for key, value in vars(module).items() if callable(value)]
    factory = getattr(module, name, None)
    if factory is None:
        listing = f"it defines {', '.join(callables) or 'none'}"
        raise unknown_name(f"{file} has no function {name!r}", name, callables, listing)
    if not callable(factory):
        raise UnsupportedError(f"{name} of {file} must be callable without arguments")
    return factory  # type: ignore[no-any-return]


def _input_channels(module: nn.Module) -> int:
    """Channels of the images, read from the first convolution; three where there is none."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
        if isinstance(layer, nn.Conv1d | nn.Conv3d):
            raise UnsupportedError(
                f"the command line feeds images [N, C, H, W]; the model's first convolution is a "
                f"{type(layer).__name__}. Use fxreduce.apply() from Python with batches that fit"
            )
    return 3
