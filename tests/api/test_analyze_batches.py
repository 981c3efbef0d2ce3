"""fxreduce.analyze reads whatever a loader yields, once, and keeps none of it."""

from __future__ import annotations

import gc
import weakref
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fxreduce
from tests.models import Counting, Small, images, seeded, stored_entropies

BATCHES = images(4, 1, 5)
LABELS = [torch.zeros(len(batch), dtype=torch.long) for batch in BATCHES]
Sample = namedtuple("Sample", ["image", "label"])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(Small)


def entropies(analysis: fxreduce.Analysis) -> dict[str, float]:
    return {site.name: site.entropy for site in analysis.sites}


@pytest.mark.parametrize(
    "loader",
    [
        pytest.param(lambda: BATCHES, id="list of tensors"),
        pytest.param(lambda: tuple(BATCHES), id="tuple of tensors"),
        pytest.param(lambda: [(x,) for x in BATCHES], id="tuples"),
        pytest.param(lambda: list(zip(BATCHES, LABELS, strict=True)), id="tuples with labels"),
        pytest.param(
            lambda: [[x, y] for x, y in zip(BATCHES, LABELS, strict=True)], id="lists with labels"
        ),
        pytest.param(
            lambda: [Sample(x, y) for x, y in zip(BATCHES, LABELS, strict=True)], id="named tuples"
        ),
        pytest.param(
            lambda: [{"label": y, "image": x} for x, y in zip(BATCHES, LABELS, strict=True)],
            id="dictionaries with labels",
        ),
        pytest.param(lambda: (x for x in BATCHES), id="generator"),
        pytest.param(lambda: iter(BATCHES), id="iterator"),
        pytest.param(lambda: map(torch.clone, BATCHES), id="map"),
        pytest.param(lambda: Counting(BATCHES), id="iterable without a length"),
    ],
)
def test_every_form_of_batches_gives_the_same_entropies(model: nn.Module, loader: Any) -> None:
    analysis = fxreduce.analyze(model, loader())
    assert analysis.batches == len(BATCHES)
    assert entropies(analysis) == pytest.approx(stored_entropies(model, BATCHES), abs=1e-6, rel=0)


def test_a_data_loader_gives_the_entropies_of_its_data(model: nn.Module) -> None:
    data = torch.cat(BATCHES)
    loader = DataLoader(TensorDataset(data, torch.cat(LABELS)), batch_size=3)
    analysis = fxreduce.analyze(model, loader)
    assert analysis.batches == 4
    assert entropies(analysis) == pytest.approx(stored_entropies(model, [data]), abs=1e-6, rel=0)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.cat(BATCHES))


def test_a_data_loader_of_unknown_length_is_read_to_its_end(model: nn.Module) -> None:
    analysis = fxreduce.analyze(model, DataLoader(Stream(), batch_size=4))
    assert analysis.batches == 3
    assert fxreduce.report(
        fxreduce.apply(model, DataLoader(Stream(), batch_size=4), budget=1)
    ).removed


def test_a_forward_of_the_user_s_own_takes_batches_apart(model: nn.Module) -> None:
    pairs = zip(BATCHES, LABELS, strict=True)
    batches = [{"pixels": x.flatten(1), "deep": {"label": y}} for x, y in pairs]
    analysis = fxreduce.analyze(
        model, batches, forward=lambda module, batch: module(batch["pixels"].view(-1, 3, 8, 8))
    )
    assert entropies(analysis) == pytest.approx(stored_entropies(model, BATCHES), abs=1e-6, rel=0)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(3, 4), nn.Linear(2, 4), nn.ReLU()

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return self.act(self.one(left) + self.two(right) * scale)


@pytest.mark.parametrize("form", ["tuple", "dictionary"])
def test_a_model_gets_as_many_inputs_as_it_requires(form: str) -> None:
    model = seeded(TwoInputs)
    left, right, label = torch.randn(9, 3), torch.randn(9, 2), torch.zeros(9)
    batch: Any = (left, right, label)
    if form == "dictionary":
        batch = {"right": right, "label": label, "left": left}
    analysis = fxreduce.analyze(model, [batch])
    z = model.one(left) + model.two(right)
    assert analysis.sites[0].on_probability.tolist() == pytest.approx(
        (z > 0).double().mean(0).tolist()
    )


def test_the_loader_is_opened_once_and_each_batch_read_once(model: nn.Module) -> None:
    loader = Counting(BATCHES)
    fxreduce.analyze(model, loader)
    assert (loader.opened, loader.given) == (1, len(BATCHES))


def test_a_generator_is_read_batch_by_batch_and_none_is_kept(model: nn.Module) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def generate() -> Iterator[Tensor]:
        nonlocal most
        for number in range(12):
            most = max(most, sum(ref() is not None for ref in alive))
            batch = torch.randn(2, 3, 8, 8) + number
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    analysis = fxreduce.analyze(model, generate())
    gc.collect()
    assert analysis.batches == 12
    assert most <= 2


def test_the_statistics_take_as_much_memory_for_many_batches_as_for_few(model: nn.Module) -> None:
    def stored(batches: int) -> int:
        analysis = fxreduce.analyze(model, (x for x in images(*[2] * batches)))
        gc.collect()
        return sum(
            value.numel() for site in analysis.sites for value in site.statistics.tensors().values()
        )

    assert stored(1) == stored(100)


def test_no_pre_activation_outlives_its_batch(model: nn.Module) -> None:
    stored: list[weakref.ref[Tensor]] = []
    handle = model.norm.register_forward_hook(lambda *args: stored.append(weakref.ref(args[2])))
    analysis = fxreduce.analyze(model, images(*[2] * 20))
    handle.remove()
    gc.collect()
    assert analysis.batches == 20
    assert len(stored) >= 20
    assert all(ref() is None for ref in stored)


def test_batches_stay_as_they_are_where_the_model_overwrites_its_input() -> None:
    model = seeded(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.ReLU()))
    batches, kept = images(4, 2), images(4, 2)
    expected = stored_entropies(model, images(4, 2))
    assert entropies(fxreduce.analyze(model, batches)) == pytest.approx(expected, abs=1e-6, rel=0)
    fxreduce.apply(model, batches, budget=1)
    fxreduce.fuse(model, example_inputs=batches[0])
    fxreduce.verify(model, model, batches[0])
    fxreduce.verify(model.double(), model, batches[0].double())
    assert all(torch.equal(a, b) for a, b in zip(batches, kept, strict=True))
