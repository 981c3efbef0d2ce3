"""Recipes: all of them are whole, and say what the publications do."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxreduce.cli.models import load_model
from fxreduce.data.names import NAMES
from fxreduce.errors import UnsupportedError
from fxreduce.recipes.recipe import METHODS, Recipe, load_recipe, recipe_names

SITES = {"resnet18": 17, "swin_t": 12, "mobilenet_v2": 35, "vgg16_bn": 15}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_whole(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.title
    assert recipe.data in NAMES or f"{recipe.data}:ROOT" in NAMES
    assert recipe.methods
    assert set(recipe.methods) <= set(METHODS)
    for published in recipe.published:
        assert published.method in recipe.methods
        assert len(published.removed) == len(published.accuracy)
        assert 0 == published.removed[0] < published.removed[-1]
        assert published.removed[-1] < SITES[name.rpartition("-")[2]]


def test_every_published_pair_of_model_and_data_set_has_a_recipe() -> None:
    data = ("cifar10", "tiny-imagenet", "pacs", "vlcs", "flowers102", "dtd", "aircraft", "digits")
    pairs = {f"{each}-{model}" for each in data for model in SITES}
    pairs |= {
        f"{task}-{model}" for task in ("sst2", "rte", "qnli") for model in ("bert", "roberta")
    }
    pairs |= {f"imagenet-{model}" for model in ("resnet18", "mobilenet_v2", "vgg16_bn")}
    assert pairs == set(recipe_names())


def test_easiers_settings_on_cifar10_are_the_published_ones() -> None:
    for model, rate in (
        ("resnet18", 0.1),
        ("mobilenet_v2", 0.1),
        ("vgg16_bn", 0.01),
        ("swin_t", 0.001),
    ):
        for data in ("cifar10", "tiny-imagenet"):
            training = load_recipe(f"{data}-{model}").training
            assert training.rate == rate
            assert (training.optimiser, training.momentum, training.nesterov) == ("sgd", 0.9, False)
            assert (training.epochs, training.batch_size) == (160, 128)
            assert (training.milestones, training.factor) == ((80, 120), 0.1)
            assert (training.weight_decay, training.decay_vectors) == (1e-4, True)


@pytest.mark.parametrize("model", SITES)
def test_the_other_settings_of_easier_are_the_published_ones(model: str) -> None:
    for data in ("pacs", "vlcs"):
        training = load_recipe(f"{data}-{model}").training
        found = (training.epochs, training.optimiser, training.rate, training.milestones)
        assert found == (30, "sgd", 1e-3, (24,))
        assert (training.batch_size, training.weight_decay) == (16, 5e-4)
    for data in ("flowers102", "dtd", "aircraft"):
        recipe = load_recipe(f"{data}-{model}")
        training = recipe.training
        assert (training.epochs, training.optimiser, training.rate) == (50, "adam", 1e-4)
        assert training.batch_size == 16
        assert recipe.pretrained


def test_settings_of_the_other_methods_are_the_published_ones() -> None:
    recipe = load_recipe("cifar10-resnet18")
    assert recipe.methods["egp"] == {"part": 0.5, "rounds": 9}
    assert recipe.methods["layer_folding"] == {"pull": 0.25, "threshold": 0.9}
    assert recipe.slopes is not None
    assert (recipe.slopes.epochs, recipe.slopes.rate) == (100, 1e-3)
    parts = {
        model: load_recipe(f"cifar10-{model}").methods["nepenthe"]["part"]
        for model in ("resnet18", "swin_t", "mobilenet_v2")
    }
    assert parts == {"resnet18": 0.5, "swin_t": 0.25, "mobilenet_v2": 0.1}
    glue = load_recipe("rte-roberta").training
    assert (glue.optimiser, glue.rate, glue.epochs, glue.batch_size) == ("adamw", 2e-5, 3, 32)
    assert load_recipe("imagenet-vgg16_bn").training.rate == 0.01
    assert load_recipe("imagenet-resnet18").training.milestones == (30, 60)


def test_published_accuracies_are_those_of_the_paper() -> None:
    first, other = load_recipe("cifar10-resnet18").published
    assert first.removed == (0, 4, 8, 12, 16)
    assert first.accuracy == (92.47, 92.47, 92.10, 84.52, 77.74)
    assert (other.method, other.accuracy) == ("nepenthe", (91.66, 92.55))
    assert load_recipe("cifar10-swin_t").published[0].accuracy == (91.66, 91.41, 87.96)
    assert load_recipe("tiny-imagenet-swin_t").published == ()


@pytest.mark.parametrize("name", SITES)
def test_narrow_networks_have_the_rectifiers_of_the_published_ones(name: str) -> None:
    import torch

    import fxreduce

    recipe = load_recipe(f"digits-{name}")
    module = load_model(recipe.model, width=recipe.width, classes=7).module
    analysis = fxreduce.analyze(module, [torch.randn(2, 3, 16, 16)], progress=False)
    assert len(analysis.sites) == SITES[name]
    assert module(torch.randn(1, 3, 16, 16)).shape == (1, 7)


def written(folder: Path, text: str) -> Recipe:
    path = folder / "own.toml"
    path.write_text(text)
    return load_recipe(str(path))


def test_a_recipe_of_ones_own_may_extend_the_published_parts(tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        'extends = ["cifar10"]\ntitle = "mine"\n[model]\nname = "timm:resnet10t"\nsize = 48\n'
        "[training]\nepochs = 20\nmilestones = [10]\n[methods.easier]\nmoves = 2\n",
    )
    assert (recipe.name, recipe.data, recipe.size) == ("own", "cifar10", 48)
    assert (recipe.training.epochs, recipe.training.batch_size) == (20, 128)
    assert recipe.methods["easier"] == {"moves": 2}
    assert recipe.methods["egp"] == {"part": 0.5, "rounds": 9}


def test_rounds_may_train_otherwise_than_the_dense_network(tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        'extends = ["digits"]\ntitle = "mine"\n[model]\nname = "small:resnet18"\n'
        "[training]\nepochs = 20\n[retraining]\nepochs = 2\nrate = 0.01\n",
    )
    assert recipe.retraining is not None
    assert (recipe.training.epochs, recipe.training.rate) == (20, 0.1)
    assert (recipe.retraining.epochs, recipe.retraining.rate) == (2, 0.01)
    assert recipe.retraining.batch_size == recipe.training.batch_size
    assert load_recipe("digits-resnet18").retraining is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "cannot be read"),
        ('title = "no model"', "must have a title, a model with a name"),
        ('extends = ["cifar11"]', "cannot be read"),
        (
            'title = "t"\n[model]\nname = "m"\n[data]\nkind = "digits"\n[training]\nepoch = 3',
            "no training setting 'epoch'",
        ),
        (
            'title = "t"\n[model]\nname = "m"\n[data]\nkind = "digits"\n[methods.magic]',
            "there is no method magic",
        ),
        (
            'title = "t"\n[model]\nname = "m"\ncolour = 3\n[data]\nkind = "digits"',
            "known keys beside them",
        ),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=said):
        written(tmp_path, text)


def test_an_unknown_recipe_is_answered_with_the_closest() -> None:
    with pytest.raises(UnsupportedError, match="did you mean cifar10-resnet18"):
        load_recipe("cifar10-resnet")
