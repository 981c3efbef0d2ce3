"""Model names: what they build, what they take, and what is said when they are wrong."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxreduce.cli.errors import UsageError
from fxreduce.cli.models import load_model
from fxreduce.errors import UnsupportedError

MODEL_FILE = """
from torch import nn
from sibling import WIDTH

def small():
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3), nn.ReLU(), nn.Flatten())

def without_convolution():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

def sequence():
    return nn.Conv1d(2, 3, 3)

def number():
    return 3

def broken():
    raise ValueError("no such luck")

constant = 5
"""


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    (tmp_path / "sibling.py").write_text("WIDTH = 4\n")
    path = tmp_path / "my_model.py"
    path.write_text(MODEL_FILE)
    return str(path)


def test_a_torchvision_model_is_built_in_eval_mode_for_its_published_crop() -> None:
    model = load_model("torchvision:shufflenet_v2_x0_5")
    assert not model.module.training
    assert (model.images.channels, model.images.size) == (3, (224, 224))
    assert model.images.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "side"), [("inception_v3", 299), ("efficientnet_b1", 240), ("vit_b_32", 224)]
)
def test_a_torchvision_model_takes_the_size_that_it_was_made_for(name: str, side: int) -> None:
    with torch.device("meta"):
        assert load_model(f"torchvision:{name}").images.size == (side, side)


def test_a_segmentation_model_downloads_no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a download was started")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with torch.device("meta"):
        load_model("torchvision:lraspp_mobilenet_v3_large")


def test_a_timm_model_brings_its_own_size_and_statistics() -> None:
    model = load_model("timm:mobilevit_xxs")
    assert model.images.size == (256, 256)
    assert model.images.mean == (0.0, 0.0, 0.0)


def test_a_file_is_imported_with_the_modules_beside_it(model_file: str) -> None:
    path = list(sys.path)
    model = load_model(f"{model_file}:small")
    assert (model.images.channels, model.images.size) == (1, (32, 32))
    assert not model.module.training
    assert sys.path == path


def test_three_channels_are_assumed_where_there_is_no_convolution(model_file: str) -> None:
    assert load_model(f"{model_file}:without_convolution").images.channels == 3


def test_the_size_can_be_chosen(model_file: str) -> None:
    assert load_model(f"{model_file}:small", size=20).images.size == (20, 20)


def test_the_seed_decides_the_random_weights(model_file: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        return next(load_model(f"{model_file}:small", seed=seed).module.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "Did you mean torchvision:resnet18 or timm:resnet18?"),
        ("torchvision:resnet81", "did you mean .*resnet18"),
        ("torchvision:zzzz", r"torchvision.models.list_models\(\) lists all models"),
        ("torchvision:r3d_18", "torchvision has no image model 'r3d_18'"),
        ("timm:resnet18z", "did you mean resnet18"),
        ("timm:resnet18.no_such_weights", "timm cannot build 'resnet18.no_such_weights'"),
        ("hub:resnet18", "a model is named torchvision:NAME, timm:NAME, small:NAME"),
        ("model.py", "a model is named torchvision:NAME, timm:NAME, small:NAME"),
    ],
)
def test_an_unknown_name_is_answered_with_the_closest_ones(name: str, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        load_model(name)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"there is no file nowhere\.py"):
        load_model("nowhere.py:factory")


@pytest.mark.parametrize(
    ("factory", "error", "said"),
    [
        ("smal", UnsupportedError, "did you mean small?"),
        ("qqqq", UnsupportedError, "it defines .*small, without_convolution"),
        ("constant", UnsupportedError, "constant of .* must be callable without arguments"),
        ("number", UnsupportedError, "must return a torch.nn.Module; it returned int"),
        ("broken", UsageError, "raised ValueError: no such luck"),
        ("sequence", UnsupportedError, r"feeds images .*; the model's first .* is a Conv1d"),
    ],
)
def test_a_wrong_factory_is_explained(
    model_file: str, factory: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        load_model(f"{model_file}:{factory}")


def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import no_such_package\n")
    with pytest.raises(UsageError, match="ModuleNotFoundError: No module named 'no_such_package'"):
        load_model(f"{path}:factory")


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes importing a package fail as if it were not installed."""
    original = builtins.__import__

    def forget(package: str) -> None:
        def failing(name: str, *rest: Any) -> Any:
            if name.partition(".")[0] == package:
                raise ImportError(package)
            return original(name, *rest)

        monkeypatch.setattr(builtins, "__import__", failing)

    return forget


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_is_answered_with_its_extra(
    package: str, forget: Callable[[str], None]
) -> None:
    forget(package)
    with pytest.raises(UnsupportedError, match=r"pip install 'fxreduce\[zoo\]'"):
        load_model(f"{package}:resnet18")


def test_an_untrained_model_is_a_plain_module(model_file: str) -> None:
    assert isinstance(load_model(f"{model_file}:small").module, nn.Sequential)
