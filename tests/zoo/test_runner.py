"""The zoo's runner itself: it resumes, survives what models do, and notices what is wrong."""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxreduce
from benchmarks.zoo import examine as examining
from benchmarks.zoo import sweep as sweeping
from benchmarks.zoo.architectures import Input, family, names, smallest_input
from benchmarks.zoo.examine import Record, Settings, examine
from benchmarks.zoo.pinned import differences, load, pin
from benchmarks.zoo.sweep import Examination, Limits, read_results, sweep

SMALL = Input((2, 3, 32, 32))


def run(chosen: list[str], results: Path, examination: Examination, **limits: Any) -> list[str]:
    """Sweep; returns the names that were examined."""
    told: list[str] = []
    sweep(
        chosen, results, Settings(), examination=examination, limits=Limits(**limits), jobs=2,
        known={},
        told=lambda name, record: told.append(name),
    )  # fmt: skip
    return told


def test_all_architectures_have_a_name_and_a_family() -> None:
    found = names()
    assert len(found) == len(set(found)) > 1000
    assert {family(name) for name in ("timm:resnet18", "timm:resnet50")} == {"timm:resnet"}
    assert (
        family("torchvision:fasterrcnn_resnet50_fpn.backbone")
        == "torchvision:detection.faster_rcnn"
    )


def test_the_smallest_input_is_one_that_the_model_takes() -> None:
    assert smallest_input("timm:resnet10t") == SMALL
    assert smallest_input("timm:vit_tiny_patch16_224") == Input((2, 3, 32, 32), image_size=32)
    assert smallest_input("torchvision:inception_v3").shape > (2, 3, 64, 64)


def test_a_model_is_equal_and_its_record_tells_what_was_merged() -> None:
    record = examine("timm:resnet10t", Settings(precise=True), SMALL)
    assert (record["status"], record["sites"], record["operators"]) == ("equal", 11, [29, 15])
    assert max(record["fused_error"], record["half_error"]) <= 1e-9


def test_a_large_model_is_captured_and_counted_without_memory_for_its_weights() -> None:
    record = examine("timm:resnet10t", Settings(largest=1000), SMALL)
    assert (record["status"], record["sites"]) == ("counted", 11)
    assert "5,435,488 weights" in record["reason"]


def test_a_wrong_merge_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = fxreduce.fuse

    def wrong(*args: Any, **kwargs: Any) -> Any:
        module = fuse(*args, **kwargs)
        with torch.no_grad():
            next(module.parameters()).mul_(1.001)
        return module

    monkeypatch.setattr(fxreduce, "fuse", wrong)
    record = examine("timm:resnet10t", Settings(), SMALL)
    assert record["status"] == "wrong"
    assert "relative" in record["reason"]


def test_where_rounding_moves_a_model_that_far_the_record_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(examining, "build", lambda *_: _Amplifies().eval())
    monkeypatch.setattr(examining, "on_meta", lambda *_: _Amplifies().eval().to("meta"))
    record = examine("timm:resnet10t", Settings(parts=("fused",)), Input((2, 3, 8, 8)))
    assert (record["status"], record["fused_in"]) == ("equal", "float64")
    precise = Settings(precise=True, parts=("fused",))
    monkeypatch.setattr(examining, "FLOAT64", 1e-13)  # as if it did so in float64, too
    record = examine("timm:resnet10t", precise, Input((2, 3, 8, 8)))
    assert (record["status"], record["fused_in"]) == ("equal", "rounding")
    assert "fused: as close as rounding its weights lets it be" in record["reason"]


class _Amplifies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sin(1e5 * self.body(x)))


def test_a_site_that_cannot_be_removed_stays_and_the_record_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(examining, "build", lambda *_: _Shares().eval())
    monkeypatch.setattr(examining, "on_meta", lambda *_: _Shares().eval().to("meta"))
    record = examine("timm:resnet10t", Settings(), Input((2, 3, 8, 8)))
    assert record["status"] == "equal"
    assert record["reason"].startswith("act stays: it works in place")


class _Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y.flatten(2)  # which the rectifier overwrites as well
        return self.act(y).flatten(2) + z


def test_a_control_that_goes_unnoticed_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "_noticed", lambda *_: 0)
    record = examine("timm:resnet10t", Settings(), SMALL)
    assert (record["status"], record["reason"]) == ("wrong", "a wrong weight was not noticed")


def test_scales_of_zero_and_one_are_drawn_so_that_no_branch_is_dead() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    nn.init.zeros_(model[1].weight)
    model.gain = nn.Parameter(torch.zeros(()))
    assert examining.randomised(model).gain.item() != 0
    for tensor in (t for t in examining.randomised(model).state_dict().values() if t.dim()):
        assert tensor.unique().numel() == tensor.numel()


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert run(["a"], results, examine_well) == ["a"]
    with results.open("a") as file:
        file.write('{"name": "b", "stat')  # the power went
    results.write_text(results.read_text().rstrip() + "\n")
    assert sorted(run(["a", "b", "c"], results, examine_well)) == ["b", "c"]
    assert set(read_results(results)) == {"a", "b", "c"}


def examine_well(*_: Any) -> Record:
    return {"status": "equal"}


def examine_memory(*_: Any) -> Record:
    return {"status": "equal", "resident": sweeping._resident(os.getpid())}


def examine_badly(name: str, *_: Any) -> Record:
    if name == "dies":
        faulthandler.disable()  # or the log of all tests would show a crash
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "eats":
        # New pages, as a heap may hold what it was given back, and go on until it is noticed.
        eaten = []
        for _ in range(24):
            eaten.append(mmap.mmap(-1, 2**28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            for place in range(0, 2**28, mmap.PAGESIZE):
                eaten[-1][place] = 1
            time.sleep(0.3)
    if name == "hangs":
        while True:
            pass
    if name == "raises":
        raise RuntimeError("of the model's own\nand more")
    return {"status": "equal"}


def test_what_a_model_does_to_its_process_is_a_record(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    # A forked process begins with less than its parent: without the pages of files.
    run(["small"], tmp_path / "small.jsonl", examine_memory)
    small = read_results(tmp_path / "small.jsonl")["small"]["resident"] / 2**30
    run(["dies", "eats", "raises", "fine"], results, examine_badly, memory=small + 0.5)
    run(["hangs"], results, examine_badly, seconds=2)
    found = {name: (r["status"], r.get("reason", "")) for name, r in read_results(results).items()}
    assert found["fine"] == ("equal", "")
    assert found["raises"] == ("failed", "RuntimeError: of the model's own")
    assert found["dies"][1].startswith("ended by signal 11;")
    assert found["eats"][1].startswith("ended by signal 9;")
    assert found["hangs"][1].startswith(
        f"ended by signal {int(signal.SIGXCPU)}; 2 s of processor time"
    )


def test_a_run_is_pinned_and_differences_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pinned.json"
    record = {"status": "equal", "sites": 3, "operators": [5, 2], "seconds": 1.5}
    table = pin({"a": record, "b": record}, path)
    assert load(path) == table
    assert "seconds" not in json.loads(path.read_text())["models"]["a"]
    assert list(differences(table, {"a": record | {"seconds": 9.0}})) == []
    assert list(differences(table, {"a": record | {"sites": 4}, "c": record})) == [
        "a: sites is 4, pinned 3",
        "c: not pinned; seen equal",
    ]
    pin({"a": record | {"sites": 4}}, path)
    assert [each["sites"] for each in load(path).values()] == [4, 3]
