from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxreduce
from fxreduce import schedules
from fxreduce.graph.capture import capture
from fxreduce.schedules.layers import LayersAsModules
from tests.checks import assert_close
from tests.networks import Wiring
from tests.schedules.scheduling import Task


def exported(task: Task) -> torch.export.ExportedProgram:
    layers = (nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False))
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.GELU())
    model.append(nn.Linear(8, 3)).double().eval()
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    return torch.export.export(model, (task.images[:16],), dynamic_shapes=sizes)


def test_the_layers_of_an_exported_program_become_modules_under_their_names() -> None:
    task = Task()
    captured = capture(exported(task), task.images[:16])
    result = LayersAsModules().run(captured)
    names = [type(each).__name__ for each in result.graph_module.modules()]
    assert [names.count(name) for name in ("Conv2d", "Linear")] == [2, 2]
    assert set(result.graph_module.state_dict()) == set(captured.state_dict())
    for name, parameter in captured.named_parameters():
        assert result.graph_module.get_parameter(name) is parameter
    with torch.no_grad():
        assert_close(captured(task.images), result.graph_module(task.images))


def test_weights_that_others_read_stay_where_they_are() -> None:
    def tied(net: Any, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, net.weight), net.weight)

    model = Wiring(tied)
    model.weight = nn.Parameter(torch.randn(3, 3))
    assert not LayersAsModules().run(capture(model.eval())).modified


@pytest.mark.parametrize("method", ["easier", "egp", "tlc"])
def test_an_exported_program_runs_through_a_schedule(method: str) -> None:
    task = Task()
    options: dict[str, Any] = {"rounds": 2, "drop": 1.0}
    if method == "easier":
        options |= {"refit": True}
    result = getattr(schedules, method)(
        exported(task), task.loader, train=task.train, evaluate=task.evaluate, **options
    )
    assert result.best.number >= 1
    assert (result.rounds[1].pruned > 0) == (method == "egp")
    merged = result.merged()
    with torch.no_grad():
        assert_close(result.model(task.images), merged(task.images))
    assert set(fxreduce.report(merged).removed) == set(result.removed)
