"""Several threads, memory that is released, weights that are promised not to change."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.dynamo import folds
from fxreduce.dynamo.folds import Folds, State
from fxreduce.dynamo.variants import Call
from tests.backend.compiling import Inner, image, network
from tests.checks import assert_close


def test_threads_with_models_of_their_own_share_a_compilation(inner: Inner) -> None:
    x = image()
    models = [network() for _ in range(4)]
    with torch.no_grad():
        expected = [model(x) for model in models]
        compiled = [torch.compile(model, backend=fxreduce.backend(inner)) for model in models]
        compiled[0](x)
    barrier = Barrier(4)

    def run(place: int) -> list[Tensor]:
        barrier.wait()
        with torch.no_grad():
            return [compiled[place](x) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for right, seen in zip(expected, pool.map(run, range(4)), strict=True):
            for each in seen:
                assert_close(right, each)
    assert inner.compilations == 1


def test_threads_fold_once_between_them() -> None:
    count = []

    def fold(weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        count.append(weights)
        return (weights[0] * 2,)

    shared, weights, barrier = Folds(fold, State), (torch.ones(3),), Barrier(4)

    def get(_: int) -> Tensor:
        barrier.wait()
        folded = shared.get(weights)
        assert folded is not None
        return folded[0]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(get, range(4))
    assert len(count) == 1
    assert all(each is first for each in others)


def folded_memory(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """The folded weights that are made from now on, without keeping them alive."""
    made: list[weakref.ref[Tensor]] = []
    keep = Folds._keep

    def noting(self: Folds[Call], weights: folds.Tensors, fold: folds._Fold[Call]) -> None:
        made.extend(weakref.ref(each) for each in (fold.folded.folded if fold.folded else ()))
        keep(self, weights, fold)

    monkeypatch.setattr(Folds, "_keep", noting)
    return made


def test_what_was_folded_is_released_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = folded_memory(monkeypatch)
    inner, x = Inner(), image()
    first, second = network(), network()
    backend = fxreduce.backend(inner)
    with torch.no_grad():
        torch.compile(first, backend=backend)(x)
        before = len(made)
        torch.compile(second, backend=backend)(x)
    assert len(made) == 2 * before > 0
    weights = [weakref.ref(each) for each in second.parameters()]
    assert all(each() is not None for each in made)
    del second
    gc.collect()
    assert all(each() is None for each in weights)
    assert [each() is None for each in made] == [False] * before + [True] * before


def test_what_was_folded_from_older_weights_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    made = folded_memory(monkeypatch)
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(Inner()))
    with torch.no_grad():
        for _ in range(3):
            model.head.weight.mul_(1.1)
            compiled(x)
            compiled(x)
    alive = [each for each in made if each() is not None]
    assert len(made) == 3 * len(alive) > 0


def test_a_model_is_not_kept_alive_by_having_been_compiled() -> None:
    model, x = network(), image()
    with torch.no_grad():
        torch.compile(model, backend=fxreduce.backend(Inner()))(x)
    weights = [weakref.ref(each) for each in model.parameters()]
    del model
    gc.collect()
    assert all(each() is None for each in weights)


def test_weights_that_never_rest_are_folded_a_few_times_only() -> None:
    folded: list[int] = []

    def fold(weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        folded.append(1)
        return (weights[0].clone(),)

    shared, weights = Folds(fold, State), [(torch.ones(3),) for _ in range(3)]
    for _ in range(3 * folds.PATIENCE):
        for each in weights:
            each[0].add_(1)
            shared.get(each)
            shared.get(each)  # twice is too little to pay
    assert len(folded) <= folds.PATIENCE + len(weights)
    before = len(folded)
    seen = [[shared.get(each) is not None for each in weights] for _ in range(20)]
    assert seen[0] == [False] * 3  # they rest from now on
    assert seen[-1] == [True] * 3
    assert len(folded) == before + 3
    weights[0][0].add_(1)
    assert shared.get(weights[0]) is None  # 20 calls were not all served by the fold
    for _ in range(2 * folds.CALLS_TO_PAY):
        shared.get(weights[0])
    weights[0][0].add_(1)
    assert shared.get(weights[0]) is not None  # it has paid: patience is back


@pytest.mark.parametrize("by_value", [False, True])
def test_frozen_weights_are_constants(by_value: bool, inner: Inner) -> None:
    model, x = network(), image()
    backend = fxreduce.backend(inner, freeze=True, by_value=by_value)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        for _ in range(2):
            assert_close(model(x), compiled(x))
    placeholders = inner.graphs[0].graph.find_nodes(op="placeholder")
    assert [node.name for node in placeholders] == ["l_x_"]
    assert inner.calls()["batch_norm"] == 0


def test_frozen_weights_that_change_are_an_error_that_names_one() -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(Inner(), freeze=True))
    with torch.no_grad():
        compiled(x)
        model.blocks[1].conv.weight.mul_(2)
        with pytest.raises(
            fxreduce.WeightsChangedError, match=r"seen: blocks\.1\.conv\.weight .*written"
        ):
            compiled(x)


def test_frozen_weights_of_another_model_are_an_error() -> None:
    first, second, x = network(), network(), image()
    backend = fxreduce.backend(Inner(), freeze=True)
    with torch.no_grad():
        torch.compile(first, backend=backend)(x)
        with pytest.raises(fxreduce.WeightsChangedError, match=r"is another one"):
            torch.compile(second, backend=backend)(x)


def test_frozen_weights_written_through_data_are_an_error_by_value() -> None:
    model, x = network(), image()
    options = {"freeze": True, "by_value": True}
    compiled = torch.compile(model, backend=fxreduce.backend(Inner()), options=options)
    with torch.no_grad():
        compiled(x)
        model.blocks[0].conv.weight.data.mul_(2)
        with pytest.raises(fxreduce.WeightsChangedError, match=r"blocks\.0\.conv\.weight"):
            compiled(x)


def test_frozen_statistics_that_move_are_an_error() -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(Inner(), freeze=True))
    with torch.no_grad():
        compiled(x)
        model.blocks[0].norm.train()(image())
        model.eval()
        with pytest.raises(fxreduce.WeightsChangedError, match=r"blocks\.0\.norm\.running_var"):
            compiled(x)


@pytest.mark.parametrize("modify", [True, False])
def test_frozen_weights_are_constants_and_guarded_where_nothing_merges(
    modify: bool, inner: Inner
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)).eval()
    compiled = torch.compile(model, backend=fxreduce.backend(inner, freeze=True))
    x = torch.rand(2, 4)
    with torch.no_grad():
        for _ in range(2):
            assert_close(model(x), compiled(x), 1e-6)
        placeholders = inner.graphs[0].graph.find_nodes(op="placeholder")
        assert len(placeholders) == 1
        assert fxreduce.report(compiled).operators_after == 2
        if modify:
            model[2].weight.mul_(2)
        else:
            model[2] = nn.Linear(4, 4)
        with pytest.raises(fxreduce.WeightsChangedError, match=r"seen: 2\.weight is another one"):
            compiled(x)
    assert inner.compilations == 1


def test_with_gradients_nothing_is_frozen(inner: Inner) -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner, freeze=True))
    for _ in range(2):
        assert_close(model(x), compiled(x))
        with torch.no_grad():
            model.head.weight.mul_(2)


def test_a_module_that_is_shared_by_two_models_in_one_graph(inner: Inner) -> None:
    shared = network()
    one, two = nn.Sequential(shared, nn.Linear(3, 2).double()), nn.Sequential(shared)

    def call(x: Tensor) -> Tensor:
        return one(x).sum() + two(x).sum()

    compiled, x = torch.compile(call, backend=fxreduce.backend(inner)), image()
    with torch.no_grad():
        for _ in range(2):
            assert_close(call(x), compiled(x))
            shared.head.weight.mul_(2)
    assert inner.compilations == 1
