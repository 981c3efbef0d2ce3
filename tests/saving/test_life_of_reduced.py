"""What a user does with any module works on a reduced one: copy, move, save, wrap, train."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

import fxreduce
from tests.models import Residual, Small, images, seeded
from tests.saving.reduced import Reduced


@pytest.fixture
def reduced() -> Reduced:
    return Reduced.of(Residual, 4, 3, 8, 8)


def test_a_copy_is_independent_and_keeps_its_report(reduced: Reduced, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="models are saved in its format")
    copy = deepcopy(reduced.module)
    assert fxreduce.report(copy) == fxreduce.report(reduced.module)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert reduced.apart(reduced.module) == 0
    assert reduced.apart(copy) > 0.1
    fxreduce.save(copy, tmp_path / "copy")
    assert torch.equal(fxreduce.load(tmp_path / "copy")(reduced.x), copy(reduced.x))


def test_a_state_dict_goes_through_torch_save(reduced: Reduced, tmp_path: Path) -> None:
    torch.save(reduced.module.state_dict(), tmp_path / "weights.pth")
    other = Reduced.of(Residual, 4, 3, 8, 8).module
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    assert reduced.apart(other) > 0.1
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert reduced.apart(other) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_that_of_every_weight(reduced: Reduced, dtype: torch.dtype) -> None:
    module = deepcopy(reduced.module).to(dtype)
    assert {each.dtype for each in module.parameters()} == {dtype}
    y = module(reduced.x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), reduced.module(reduced.x), rtol=0.1, atol=0.05)


def test_another_device_is_that_of_every_tensor(reduced: Reduced) -> None:
    module = deepcopy(reduced.module).to("meta")
    assert module(reduced.x.to("meta")).shape == reduced.module(reduced.x).shape
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_data_parallel_runs_it(reduced: Reduced) -> None:
    assert reduced.apart(nn.DataParallel(reduced.module)) == 0


def test_the_users_own_loop_trains_it(reduced: Reduced) -> None:
    module, target = reduced.module.train(), torch.randn(4, 5)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (module(reduced.x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert fxreduce.verify(module.eval(), deepcopy(module), reduced.x).ok


def test_in_train_mode_merged_batch_norms_stay_what_they_were_merged_as() -> None:
    reduced, (x,) = fxreduce.fuse(seeded(Small)), images(6)
    expected = reduced(x)
    before = deepcopy(reduced.state_dict())
    assert torch.equal(reduced.train()(x), expected)
    assert all(map(torch.equal, reduced.state_dict().values(), before.values()))


def test_in_train_mode_batch_norms_that_stayed_normalise_by_the_batch() -> None:
    reduced, (x,) = fxreduce.fuse(seeded(Small), disable="fuse_chain"), images(6)
    assert isinstance(reduced.norm, nn.BatchNorm2d)
    expected, before = reduced(x), reduced.norm.running_mean.clone()
    assert not torch.allclose(reduced.train()(x), expected)
    assert not torch.equal(reduced.norm.running_mean, before)


def test_untouched_parameters_keep_their_names_and_merged_ones_are_listed() -> None:
    model = seeded(Residual)
    sites = ["relu#1"]
    reduced = fxreduce.fuse(fxreduce.linearize(model, sites), example_inputs=images(2)[0])
    where = fxreduce.report(reduced).parameters
    assert set(where) == set(dict(model.named_parameters()))
    assert {name for names in where.values() for name in names} == set(
        dict(reduced.named_parameters())
    )
    assert where["conv1.weight"] == where["bn1.weight"] == ("conv1.weight", "conv1.bias")
    assert (where["head.weight"], where["head.bias"]) == (("head.weight",), ("head.bias",))


@pytest.mark.parametrize("compensate", ["channel", "refit"])
def test_what_took_a_rectifier_s_place_is_no_parameter_of_the_original(compensate: str) -> None:
    model, batches = seeded(Residual), images(6, 6, 6)
    reduced = fxreduce.apply(model, batches, budget=1, compensate=compensate)
    where = fxreduce.report(reduced).parameters
    assert set(where) == set(dict(model.named_parameters()))
    assert {n for names in where.values() for n in names} <= set(dict(reduced.named_parameters()))


def test_a_prelu_that_is_removed_leaves_its_slope_nowhere() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)))
    reduced = fxreduce.apply(model, [torch.randn(64, 3)], budget=1, compensate="identity")
    where = fxreduce.report(reduced).parameters
    assert where["1.weight"] == ()
    assert where["0.weight"] == where["2.bias"] == ("0.weight", "0.bias")
