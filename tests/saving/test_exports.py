"""Exported models compute what the reduced one does, for any batch size, without fxreduce."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxreduce
from fxreduce.graph.outputs import leaves_of
from fxreduce.saving import exports
from tests.models import Small, images, seeded
from tests.saving.cases import case, cases
from tests.saving.reduced import Reduced

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is an extra")
NAMES = ("small", "residual", "resnet18", "mobilenet_v2", "swin_t", "vit_tiny")
QUICK = ("small", "residual")


@pytest.fixture(scope="module", params=cases(NAMES, QUICK))
def reduced(request: pytest.FixtureRequest) -> Reduced:
    return case(request.param)


def session_of(path: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert given.shape[0] == "batch"
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


@pytest.mark.parametrize("batch", [1, 5])
def test_a_program_computes_the_same_for_any_batch_size(
    reduced: Reduced, tmp_path: Path, batch: int
) -> None:
    path = fxreduce.save(reduced.module, tmp_path / "model.pt2")
    program = torch.export.load(path).module()
    assert reduced.apart(program, torch.randn(batch, *reduced.x.shape[1:])) < 1e-5


@pytest.mark.parametrize("batch", [1, 5])
def test_onnxruntime_computes_the_same_for_any_batch_size(
    reduced: Reduced, tmp_path: Path, batch: int
) -> None:
    path = fxreduce.save(reduced.module, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]  # weights are not in a file beside it
    x = torch.randn(batch, *reduced.x.shape[1:])
    assert reduced.apart(session_of(path), x) < 1e-5


class Two(nn.Module):
    """Two inputs, one of them by name alone, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, image: Tensor, *, scale: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.inner(image)
        return logits, logits * scale


def outputs(path: Path, given: dict[str, Tensor]) -> list[Tensor]:
    """What an exported model returns for inputs by name."""
    if path.suffix == ".pt2":
        return pytree.tree_leaves(torch.export.load(path).module()(**given))
    fed = {name: value.numpy() for name, value in given.items()}
    return [torch.from_numpy(y) for y in onnxruntime.InferenceSession(path).run(None, fed)]


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_several_inputs_and_outputs_are_exported(tmp_path: Path, suffix: str) -> None:
    (image,) = images(2)
    given = {"image": image, "scale": torch.rand(2, 1)}
    reduced = fxreduce.fuse(seeded(Two), example_inputs=given)
    path = fxreduce.save(reduced, tmp_path / f"two{suffix}")
    for one, other in zip(reduced(**given), outputs(path, given), strict=True):
        torch.testing.assert_close(one, other)


class Sparse(nn.Module):
    """Optional inputs, of which one in the middle is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(
        self, image: Tensor, cache: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        logits = self.inner(image if cache is None else image + cache)
        return logits if scale is None else logits * scale


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_inputs_by_name_are_exported_by_name_where_one_is_left_out(
    tmp_path: Path, suffix: str
) -> None:
    (image,) = images(2)
    given = {"image": image, "scale": torch.rand(2, 1)}
    reduced = fxreduce.fuse(seeded(Sparse), example_inputs=given)
    path = fxreduce.save(reduced, tmp_path / f"sparse{suffix}")
    (seen,) = outputs(path, given)
    torch.testing.assert_close(reduced(**given), seen)


@dataclass
class Scores:
    """What a model returns, with a part that is not always there."""

    scores: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Pair(NamedTuple):
    one: Tensor
    other: Tensor


class Own(nn.Module):
    """A model that returns what `pack` makes of two tensors."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.fc(x).relu()
        return self.pack(self.head(x), x)


PACKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], type]] = {
    "a dataclass": (lambda y, x: Scores(y, (x,)), dict),
    "a named tuple": (Pair, tuple),
    "a dataclass in a dictionary": (lambda y, x: {"a": Scores(y, ()), "b": [x]}, dict),
    "nothing among tensors": (lambda y, x: (y, None, {"x": x}), tuple),
}


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("pack", PACKS)
def test_outputs_of_classes_of_one_s_own_leave_as_plain_containers(
    tmp_path: Path, pack: str, suffix: str
) -> None:
    make, plain = PACKS[pack]
    x = torch.randn(2, 6)
    reduced = fxreduce.fuse(seeded(lambda: Own(make)), example_inputs=x)
    path = fxreduce.save(reduced, tmp_path / f"own{suffix}")
    if suffix == ".pt2":
        seen = torch.export.load(path).module()(x)
        assert isinstance(seen, plain)
        assert not isinstance(seen, Pair)
    else:
        fed = {"x": x.numpy()}
        seen = [torch.from_numpy(y) for y in onnxruntime.InferenceSession(path).run(None, fed)]
    expected = (leaf for leaf in leaves_of(reduced(x))[1] if isinstance(leaf, Tensor))
    found = (leaf for leaf in leaves_of(seen)[1] if isinstance(leaf, Tensor))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_program_that_cannot_be_written_is_refused_and_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("no name for a class")

    monkeypatch.setattr(torch.export, "save", refuse)
    with pytest.raises(fxreduce.UnsupportedError, match=r"cannot write .*no name .*Save it"):
        fxreduce.save(Reduced.of(Small, 2, 3, 8, 8).module, tmp_path / "small.pt2")
    assert os.listdir(tmp_path) == []


def test_inputs_that_are_not_known_are_asked_for(tmp_path: Path) -> None:
    reduced, (x,) = fxreduce.fuse(seeded(Small)), images(1)
    with pytest.raises(fxreduce.UnsupportedError, match=r"pass example_inputs, as in fxreduce\.sa"):
        fxreduce.save(reduced, tmp_path / "small.pt2")
    fxreduce.save(reduced, tmp_path / "small.pt2", example_inputs=x)
    assert torch.equal(torch.export.load(tmp_path / "small.pt2").module()(x), reduced(x))


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3).relu()


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_model_for_one_batch_size_is_refused(tmp_path: Path, suffix: str) -> None:
    reduced = fxreduce.fuse(OneSize().eval(), example_inputs=torch.ones(2, 3))
    with pytest.raises(
        fxreduce.UnsupportedError, match=r"torch\.export cannot express .* any batch size: .*Save"
    ):
        fxreduce.save(reduced, tmp_path / f"one{suffix}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_an_export_that_computes_something_else_is_not_kept(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced = Reduced.of(Small, 2, 3, 8, 8).module
    wrong, program = fxreduce.fuse(seeded(Small, seed=9)), exports._program
    monkeypatch.setattr(exports, "_program", lambda _, given: program(wrong, given))
    with pytest.raises(fxreduce.EquivalenceError, match=r"off by \d.* batch of 1, .* allowed"):
        fxreduce.save(reduced, tmp_path / f"small{suffix}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        fxreduce.UnsupportedError, match=rf"{package}, which is not .*'fxreduce\[export\]'"
    ):
        fxreduce.save(Reduced.of(Small, 2, 3, 8, 8).module, tmp_path / "small.onnx")


def test_an_older_file_stays_where_a_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.pt2"
    path.write_text("old")

    def refuse(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch.export, "save", refuse)
    with pytest.raises(fxreduce.PlanError, match="no space left on device"):
        fxreduce.save(Reduced.of(Small, 2, 3, 8, 8).module, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["small.pt2"]
