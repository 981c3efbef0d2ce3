"""Weights that change, one compilation: the outputs are the uncompiled model's each time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from fxreduce.dynamo import folds
from tests.backend.compiling import Block, Inner, image, network, norms
from tests.checks import assert_close, randomised

pytestmark = pytest.mark.usefixtures("no_grad")


def multiply_in_place(model: nn.Module) -> None:
    for each in (*model.parameters(), *(norm.running_var for norm in norms(model))):
        each.mul_(1.5)


def load(model: nn.Module) -> None:
    model.load_state_dict(network().state_dict())


def load_and_assign(model: nn.Module) -> None:
    model.load_state_dict(network().state_dict(), assign=True)


def reassign_a_parameter(model: nn.Module) -> None:
    for norm in norms(model):
        norm.weight = nn.Parameter(torch.rand_like(norm.weight))


def replace_a_module(model: nn.Module) -> None:
    model.blocks[0] = randomised(Block())


def assign_data(model: nn.Module) -> None:
    for each in model.parameters():
        each.data = torch.rand_like(each)


def step(
    optimiser: type[torch.optim.Optimizer], *, compiled: bool = False, **options: object
) -> Callable[[nn.Module], None]:
    def update(model: nn.Module) -> None:
        with torch.enable_grad():
            model(image()).square().sum().backward()
        take = optimiser(model.parameters(), lr=0.1, **options).step
        (torch.compile(take, backend="aot_eager") if compiled else take)()

    return update


def train_once(model: nn.Module) -> None:
    model.train()
    model(image())  # moves the running statistics
    model.eval()


UPDATES = {
    "multiplied in place": multiply_in_place,
    "a state dict loaded": load,
    "a state dict assigned": load_and_assign,
    "parameters reassigned": reassign_a_parameter,
    "a module replaced": replace_a_module,
    "data assigned": assign_data,
    "a step of SGD": step(torch.optim.SGD),
    "a step of Adam, many tensors at once": step(torch.optim.Adam, foreach=True),
    "a step of fused Adam": step(torch.optim.Adam, fused=True),
    "a compiled step of Adam": step(torch.optim.Adam, compiled=True),
    "statistics moved in train mode": train_once,
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_an_update_is_seen_without_compiling_again(
    update: Callable[[nn.Module], None], inner: Inner
) -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    assert_close(model(x), compiled(x))
    before = compiled(x)
    update(model)
    assert_close(model(x), compiled(x))
    assert (compiled(x) - before).abs().max() > 1e-5  # the update changes something
    assert_close(model(x), compiled(x))
    assert inner.compilations == 1
    assert inner.calls()["batch_norm"] == 0
    assert inner.calls()["conv2d"] == 4  # of six


def test_a_second_instance_uses_its_own_weights_and_the_first_again_its_own(inner: Inner) -> None:
    first, second, x = network(), network(), image()
    backend = fxreduce.backend(inner)
    one, two = (torch.compile(each, backend=backend) for each in (first, second))
    for _ in range(2):
        assert_close(first(x), one(x))
        assert_close(second(x), two(x))
    assert (one(x) - two(x)).abs().max() > 1e-3
    assert inner.compilations == 1


def test_blocks_compiled_one_by_one_share_a_compilation(inner: Inner) -> None:
    blocks = nn.Sequential(*(randomised(Block()) for _ in range(12)))
    x, expected = image(), blocks(image() * 0)
    expected = blocks(x)
    for block in blocks:
        block.compile(backend=fxreduce.backend(inner))
    for _ in range(2):
        assert_close(expected, blocks(x))
    assert inner.compilations == 1
    assert inner.calls()["batch_norm"] == 0


def test_a_copy_of_a_compiled_model_has_weights_of_its_own(inner: Inner) -> None:
    compiled, x = torch.compile(network(), backend=fxreduce.backend(inner)), image()
    before = compiled(x)
    copy = deepcopy(compiled)
    multiply_in_place(copy)
    assert_close(before, compiled(x))
    assert_close(copy._orig_mod(x), copy(x))
    assert (copy(x) - before).abs().max() > 1e-3
    assert inner.compilations == 1


def test_weights_made_in_inference_mode_are_compared_by_value(inner: Inner) -> None:
    with torch.inference_mode():
        model, x = network(), image()
        compiled = torch.compile(model, backend=fxreduce.backend(inner))
        for _ in range(3):
            assert_close(model(x), compiled(x))
            multiply_in_place(model)
    assert inner.compilations == 1
    assert inner.calls()["batch_norm"] == 0


def test_writes_through_data_are_seen_by_value(inner: Inner) -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner, by_value=True))
    for _ in range(3):
        assert_close(model(x), compiled(x))
        model.blocks[0].conv.weight.data.mul_(1.5)
    assert inner.compilations == 1


def test_writes_through_data_leave_no_trace_otherwise() -> None:
    """What the documentation of `by_value` says: if torch comes to count them, it can go."""
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(Inner()))
    before = compiled(x)
    model.blocks[0].conv.weight.data.mul_(1.5)
    assert torch.equal(before, compiled(x))


def test_weights_that_are_new_at_every_call_are_not_folded_for_ever(
    inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "PATIENCE", 3)
    model, x = network(), image()

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x,))

    compiled = torch.compile(call, backend=fxreduce.backend(inner))
    for _ in range(6):
        weights = {k: nn.Parameter(torch.rand_like(v)) for k, v in model.named_parameters()}
        assert_close(call(weights, x), compiled(weights, x))
    assert inner.compilations == 2  # the merged graph, and the unmerged one
    assert inner.calls(0)["conv2d"] < inner.calls(1)["conv2d"]


def test_folding_draws_no_random_numbers(inner: Inner) -> None:
    model, x = network(), image()
    compiled = torch.compile(model, backend=fxreduce.backend(inner))
    compiled(x)
    multiply_in_place(model)
    state = torch.random.get_rng_state()
    compiled(x)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("zero_first", [True, False])
def test_weights_of_zero_merge_as_others_do(zero_first: bool, inner: Inner) -> None:
    """A shift of zero would merge through padding in a cheaper way, which others do not have."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x))

    models = [Padded().double().eval(), randomised(Padded())]  # a new batch-norm shifts by zero
    x = image()
    for model in models if zero_first else models[::-1]:
        assert_close(model(x), torch.compile(model, backend=fxreduce.backend(inner))(x))
    assert inner.compilations == 1
    assert inner.calls()["batch_norm"] == 0
