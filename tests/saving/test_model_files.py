"""A reduced model comes back from its file as it was; a file that is not whole is refused."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.fx import GraphModule

import fxreduce
from fxreduce.saving import model_file
from fxreduce.saving.model_file import ModelFile
from tests.models import Functional, Residual, Small, images, seeded
from tests.saving.cases import case, cases
from tests.saving.reduced import Reduced

NAMES = ("small", "resnet18", "mobilenet_v2", "swin_t", "vit_tiny", "tf_efficientnet_b0")
QUICK = ("small", "resnet18")


@pytest.fixture(scope="module", params=cases(NAMES, QUICK))
def reduced(request: pytest.FixtureRequest) -> Reduced:
    return case(request.param)


@pytest.fixture
def small() -> Reduced:
    return Reduced.of(Small, 2, 3, 8, 8)


def state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def test_a_model_is_loaded_with_the_same_bits_into_any_weights_of_its_architecture(
    reduced: Reduced, tmp_path: Path
) -> None:
    fxreduce.save(reduced.module, tmp_path / "model.safetensors")
    loaded = fxreduce.load(tmp_path / "model.safetensors", seeded(reduced.make, seed=5))
    assert isinstance(loaded, GraphModule)
    assert list(state(loaded)) == list(state(reduced.module))
    for name, tensor in state(reduced.module).items():
        assert torch.equal(state(loaded)[name], tensor), name
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in reduced.module.named_parameters()
    }
    assert reduced.apart(loaded, torch.cat([reduced.x, 2 * reduced.x])) < 1e-5
    assert fxreduce.report(loaded) == fxreduce.report(reduced.module)


def test_torch_s_own_modules_and_functions_need_no_model(small: Reduced, tmp_path: Path) -> None:
    fxreduce.save(small.module, tmp_path / "small.safetensors")
    assert small.apart(fxreduce.load(tmp_path / "small.safetensors")) == 0


@torch.fx.wrap
def doubled(x: Tensor) -> Tensor:
    return 2 * x


class Doubling(nn.Module):
    """A function of the user's own, which tracing keeps whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return doubled(self.conv(image))


def test_functions_of_one_s_own_do_need_the_model(tmp_path: Path) -> None:
    (x,) = images(2)
    reduced = fxreduce.fuse(seeded(Doubling))
    fxreduce.save(reduced, tmp_path / "own")
    with pytest.raises(fxreduce.UnsupportedError, match=r"\.doubled is neither\. Pass that model"):
        fxreduce.load(tmp_path / "own")
    loaded = fxreduce.load(tmp_path / "own", seeded(Doubling, seed=4))
    assert torch.equal(loaded(x), reduced(x))


def test_the_file_is_one_that_any_safetensors_reader_reads(small: Reduced, tmp_path: Path) -> None:
    fxreduce.save(small.module, tmp_path / "small.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "small.safetensors")
    assert set(tensors) == set(state(small.module))


def test_a_folder_that_is_there_takes_the_file_in(small: Reduced, tmp_path: Path) -> None:
    assert fxreduce.save(small.module, tmp_path) == tmp_path / "reduced.safetensors"
    assert small.apart(fxreduce.load(tmp_path)) == 0


def test_fine_tuned_weights_are_saved_and_trained_further(small: Reduced, tmp_path: Path) -> None:
    module = small.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    frozen, *others = module.parameters()
    frozen.requires_grad_(False)
    with torch.inference_mode():
        fxreduce.save(module, tmp_path / "tuned")
        loaded = fxreduce.load(tmp_path / "tuned")
    assert small.apart(loaded) == 0
    loaded(small.x).sum().backward()
    first, *rest = loaded.parameters()
    assert (first.grad, len(rest)) == (None, len(others))
    assert all(parameter.grad is not None for parameter in rest)


class Tied(nn.Module):
    """One weight under two names, and a buffer that is not part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("offset", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.sin(self.one(x)) + self.offset)


def test_tied_weights_stay_tied_and_buffers_stay_out_of_the_state_dict(tmp_path: Path) -> None:
    reduced = fxreduce.fuse(seeded(Tied), disable=("fuse_chain", "fold_scale"))
    fxreduce.save(reduced, tmp_path / "tied")
    loaded = fxreduce.load(tmp_path / "tied")
    assert loaded.get_parameter("one.weight") is loaded.get_parameter("two.weight")
    assert "offset" not in loaded.state_dict()
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), reduced(x))


def test_exported_programs_with_dictionaries_come_back(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Small()

        def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(image) * scale}

    batch = torch.export.Dim("batch")
    (image,) = images(2)
    given = {"image": image, "scale": torch.ones(2, 1)}
    program = torch.export.export(
        seeded(Named), (), given, dynamic_shapes={"image": {0: batch}, "scale": {0: batch}}
    )
    reduced = fxreduce.fuse(program, example_inputs=given)
    fxreduce.save(reduced, tmp_path / "named.safetensors")
    loaded = fxreduce.load(tmp_path / "named.safetensors")
    for name, tensor in reduced(**given).items():
        assert torch.equal(loaded(**given)[name], tensor)


def test_a_model_that_was_applied_from_data_comes_back(tmp_path: Path) -> None:
    batches = images(6, 6)
    reduced = fxreduce.apply(seeded(Residual), batches, budget=1)
    fxreduce.save(reduced, tmp_path / "residual")
    loaded = fxreduce.load(tmp_path / "residual", seeded(Residual, seed=3))
    assert torch.equal(loaded(batches[0]), reduced(batches[0]))
    assert fxreduce.report(loaded).removed == fxreduce.report(reduced).removed


def with_gelu() -> nn.Module:
    model = Small()
    model.act2 = nn.GELU()
    return model


@pytest.mark.parametrize(
    ("make", "difference"),
    [
        (with_gelu, r"position 1 it has 'site act2: relu', the model 'site act2: gelu'"),
        (lambda: Small(width=6), r"'parameter head\.weight: \(4, 8\)', the model .*\(4, 6\)"),
        (Functional, r"position 0 it has 'site act: relu', the model 'site relu: relu'"),
    ],
)
def test_another_architecture_is_refused_with_the_first_difference(
    small: Reduced, tmp_path: Path, make: Callable[[], nn.Module], difference: str
) -> None:
    fxreduce.save(small.module, tmp_path / "small")
    with pytest.raises(fxreduce.PlanError, match=rf"another architecture: .*{difference}"):
        fxreduce.load(tmp_path / "small", seeded(make))


def test_another_minor_version_of_torch_is_a_warning(
    small: Reduced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fxreduce.save(small.module, tmp_path / "small")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxreduce.load(tmp_path / "small")
    monkeypatch.setattr(torch, "__version__", "2.99.1")
    with pytest.warns(UserWarning, match=r"written with torch 2\.\d+\.\S+, this is torch 2\.99\.1"):
        assert small.apart(fxreduce.load(tmp_path / "small")) == 0


def damaged(path: Path, edit: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(edit(path.read_bytes()))
    return path


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-7], "no reduced model can be read"),
    "empty": (lambda data: b"", "no reduced model can be read"),
    "a pickle": (lambda data: b"\x80\x04\x95" + data, "no reduced model can be read"),
    "another weight": (lambda data: data[:-1] + bytes([data[-1] ^ 64]), "was changed since"),
    "another name": (lambda data: data.replace(b"flatten", b"flattex"), "was changed since"),
    "another hash": (lambda data: re.sub(rb'"sha256":"...', b'"sha256":"abc', data), "was changed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(small: Reduced, tmp_path: Path, damage: str) -> None:
    edit, message = DAMAGES[damage]
    fxreduce.save(small.module, tmp_path / "small")
    path = damaged(tmp_path / "small", edit)
    with pytest.raises(fxreduce.PlanError, match=message):
        fxreduce.load(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("graph"),
        lambda content: content.update(more=1),
        lambda content: content.update(torch=2),
        lambda content: content.update(report=None),
    ],
    ids=["without a graph", "with more", "of no version", "without a report"],
)
def test_a_file_of_another_form_is_refused_though_its_hash_is_right(
    small: Reduced, tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    file = ModelFile.read(fxreduce.save(small.module, tmp_path / "small.safetensors"))
    content = {name: value for name, value in vars(file).items() if name != "tensors"}
    edit(content)
    text = json.dumps(content | {"schema": 1})
    metadata = {"fxreduce": text, "sha256": model_file._hash(text, file.tensors)}
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(dict(file.tensors), path, metadata)
    with pytest.raises(fxreduce.PlanError, match="holds a damaged model"):
        fxreduce.load(path)


def test_what_is_no_file_and_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(fxreduce.PlanError, match=r"no reduced model can be read from .*absent"):
        fxreduce.load(tmp_path / "absent")
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "weights")
    with pytest.raises(fxreduce.PlanError, match="holds weights, but no reduced model"):
        fxreduce.load(tmp_path / "weights")
    with pytest.raises(fxreduce.UnsupportedError, match=r"m\.pt2 is read by torch\.export\.load"):
        fxreduce.load(tmp_path / "m.pt2")


def test_only_what_fxreduce_made_is_saved(tmp_path: Path) -> None:
    with pytest.raises(fxreduce.UnsupportedError, match="this Small was not made by fxreduce"):
        fxreduce.save(torch.fx.symbolic_trace(Small()), tmp_path / "small")
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file_and_nothing_else(
    small: Reduced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.safetensors"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(fxreduce.PlanError, match=r"cannot be written to .*no space left"):
        fxreduce.save(small.module, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["small.safetensors"]


def test_channels_last_weights_keep_their_format(tmp_path: Path) -> None:
    reduced = fxreduce.fuse(seeded(Small).to(memory_format=torch.channels_last))
    assert reduced.stem.weight.is_contiguous(memory_format=torch.channels_last)
    fxreduce.save(reduced, tmp_path / "small")
    loaded = fxreduce.load(tmp_path / "small")
    assert loaded.stem.weight.stride() == reduced.stem.weight.stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    reduced = fxreduce.fuse(seeded(Small).to(dtype))
    fxreduce.save(reduced, tmp_path / "small")
    loaded = fxreduce.load(tmp_path / "small")
    (x,) = images(2, dtype=dtype)
    assert torch.equal(loaded(x), reduced(x))
    assert loaded(x).dtype == dtype


def test_a_file_tells_its_content_without_fxreduce(small: Reduced, tmp_path: Path) -> None:
    fxreduce.save(small.module, tmp_path / "small")
    with safe_open(tmp_path / "small", "pt") as file:
        assert set(file.metadata()) == {"fxreduce", "sha256"}
