"""Weights from files: both formats, the wrappers of training scripts, and what may go wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxreduce.cli.errors import UsageError
from fxreduce.cli.weights import load_weights
from fxreduce.errors import UnsupportedError

State = dict[str, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def trained() -> State:
    torch.manual_seed(7)
    model = network()
    model(torch.randn(8, 1, 5, 5))  # moves the running statistics
    return model.state_dict()


def assert_loads(path: Path) -> None:
    model = network()
    load_weights(model, path)
    for name, value in trained().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "wrapped", "parallel", "without counters"],
)
def test_a_torch_file_is_loaded(
    tmp_path: Path, suffix: str, wrap: Callable[[State], object]
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(trained()), path)
    assert_loads(path)


def test_a_safetensors_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(trained(), path)
    assert_loads(path)


def test_misfits_are_named_by_kind_and_the_first_few(tmp_path: Path) -> None:
    state = trained()
    state["0.weight"] = torch.zeros(4, 1, 5, 5)
    for index in range(5):
        state[f"extra{index}"] = torch.zeros(1)
    del state["1.weight"]
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(model, path)
    assert "do not fit Sequential: 1 missing (1.weight); " in str(caught.value)
    assert "5 not in the model (extra0, extra1, extra2, ...); " in str(caught.value)
    assert "0.weight is [4, 1, 5, 5] and should be [4, 1, 3, 3]" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_pickled_model_is_refused_without_running_its_code(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(network(), path)
    with pytest.raises(UsageError, match=r"Save model.state_dict\(\) and not the model"):
        load_weights(network(), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no weights file .*nowhere\.pt"):
        load_weights(network(), tmp_path / "nowhere.pt")


def test_an_unknown_suffix_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"\.safetensors, \.pth, \.pt files; got 'w\.h5'"):
        load_weights(network(), tmp_path / "w.h5")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"this is no tensor at all"], ids=["empty", "text"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a"):
        load_weights(network(), path)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UsageError, match="must hold a state dict"):
        load_weights(network(), path)
