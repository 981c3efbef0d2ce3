"""Latencies are measured once for each operator and setting, kept in a file, and found again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxreduce
from fxreduce.errors import UnsupportedError
from fxreduce.graph import latency
from fxreduce.graph.latency import LatencyCost
from fxreduce.graph.modules import BorderedConv
from fxreduce.operators.affine import Conv, identity
from fxreduce.operators.cost import as_cost
from fxreduce.operators.setting import Setting

CONV = Conv(torch.empty(8, 4, 3, 3, device="meta"), padding=(1, 1))
IMAGE = Setting((2, 4, 6, 6))


class Clock:
    """Stands in for the clock: counts the calls it is given and makes up a time for each."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def __call__(
        self, calls: Sequence[Callable[[], object]], device: torch.device, *, rounds: int
    ) -> list[float]:
        self.calls += calls
        return [1e-6 * (len(self.calls) + place) for place in range(len(calls))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "median_latencies", clock)
    return clock


def test_an_operator_is_timed_once_for_each_setting(clock: Clock, tmp_path: Path) -> None:
    model = LatencyCost(cache=tmp_path / "l.json")
    first = model.costs([(CONV, IMAGE), (CONV, IMAGE), (CONV, replace(IMAGE, shape=(1, 4, 6, 6)))])
    assert len(clock.calls) == 2
    assert first[0] == first[1] != first[2]
    assert model.cost(CONV, IMAGE) == first[0]
    assert len(clock.calls) == 2


def test_what_differs_in_anything_that_time_depends_on_is_timed_by_itself(clock: Clock) -> None:
    settings = [
        IMAGE,
        replace(IMAGE, dtype=torch.float64),
        replace(IMAGE, channels_last=True),
    ]
    operators = [
        CONV,
        replace(CONV, bias=torch.empty(8, device="meta")),
        replace(CONV, border=torch.empty(8, 3, 3, device="meta")),
        replace(CONV, stride=(2, 2)),
        identity(4, 2),
    ]
    candidates = [(operator, IMAGE) for operator in operators] + [(CONV, s) for s in settings[1:]]
    assert len(set(LatencyCost(cache=None).costs(candidates))) == len(candidates)


def test_what_was_timed_is_found_in_the_file(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "latency.json"
    seen = LatencyCost(cache=path).cost(CONV, IMAGE)
    LatencyCost(cache=path).cost(identity(4, 2), IMAGE)
    assert len(json.loads(path.read_text())) == 2
    assert torch.__version__ in next(iter(json.loads(path.read_text())))
    assert LatencyCost(cache=path).cost(CONV, IMAGE) == seen
    assert len(clock.calls) == 2
    assert [each.name for each in path.parent.iterdir()] == ["latency.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}'])
def test_a_damaged_file_is_measured_anew(clock: Clock, tmp_path: Path, content: str) -> None:
    path = tmp_path / "latency.json"
    path.write_text(content)
    assert LatencyCost(cache=path).cost(CONV, IMAGE) > 0
    assert len(json.loads(path.read_text())) == 1


def test_a_folder_that_cannot_be_written_costs_no_more_than_the_file(
    clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert LatencyCost(cache=tmp_path / "file" / "latency.json").cost(CONV, IMAGE) > 0


def test_what_is_timed_is_the_operator_on_an_input_of_the_setting(clock: Clock) -> None:
    border = replace(CONV, border=torch.empty(8, 3, 3, device="meta"))
    where = replace(IMAGE, dtype=torch.bfloat16, channels_last=True)
    LatencyCost(cache=None).costs([(CONV, where), (border, IMAGE)])
    plain, bordered = clock.calls
    assert isinstance(plain, latency._Call)
    assert isinstance(bordered, latency._Call)
    assert isinstance(plain.module, nn.Conv2d)
    assert plain.x.shape == where.shape
    assert plain.x.dtype == torch.bfloat16
    assert plain.x.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(bordered.module, BorderedConv)
    assert bordered().shape == (2, 8, 6, 6)  # type: ignore[attr-defined]


def test_real_time_passes() -> None:
    assert LatencyCost(cache=None, rounds=3).cost(CONV, IMAGE) > 0


def test_latency_needs_true_shapes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    with pytest.raises(UnsupportedError, match="pass example_inputs"):
        fxreduce.fuse(model, cost=LatencyCost(cache=None))


def test_latency_is_a_cost_by_name_and_merges_as_others_do() -> None:
    assert isinstance(as_cost("latency"), LatencyCost)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    x = torch.randn(1, 3, 8, 8)
    fused = fxreduce.fuse(model, cost=LatencyCost(cache=None, rounds=3), example_inputs=x)
    with torch.no_grad():
        assert torch.allclose(fused(x), model(x), atol=1e-6)
