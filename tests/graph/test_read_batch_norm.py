"""Batch-norm is read in eval, over axis 1, whatever form it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import calling, randomised, read_operators, refusals
from torch import Tensor, nn
from torch.export import export

from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.capture import capture
from fxreduce.operators.affine import ScaleShift

UNKNOWN = "batch-norm normalises axis 1, and nothing tells how many axes its input has"
BATCH = "the batch-norm normalises by the batch's own statistics"


def scale_shifts(graph_module: Any, *inputs: Tensor) -> list[ScaleShift]:
    read = read_operators(graph_module, *inputs)
    return [operator for operator in read if isinstance(operator, ScaleShift)]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("norm", "shape", "rank"),
    [
        (nn.BatchNorm1d, (5, 4), 0),
        (nn.BatchNorm1d, (5, 4, 3), 1),
        (nn.BatchNorm2d, (2, 4, 3, 5), 2),
        (nn.BatchNorm3d, (2, 4, 3, 2, 3), 3),
        (nn.SyncBatchNorm, (2, 4, 3, 5), 2),
    ],
)
def test_a_module_is_read_over_axis_1_in_each_dialect(
    norm: Callable[..., nn.Module], shape: tuple[int, ...], rank: int, affine: bool
) -> None:
    model = randomised(nn.Sequential(norm(4, affine=affine)))
    x = torch.randn(*shape, dtype=torch.float64)
    for graph_module in (capture(model, x), capture(export(model, (x,)))):
        (operator,) = scale_shifts(graph_module, x)
        assert operator.rank == rank


class Functional(nn.Module):
    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call
        for name in ("mean", "var", "gain", "offset"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.batch_norm(x, m.mean, m.var),
        lambda m, x: F.batch_norm(x, m.mean, m.var, m.gain, m.offset, False, 0.1, 1e-2),
        lambda m, x: F.batch_norm(x, m.mean, m.var, bias=m.offset, eps=1e-1),
        lambda m, x: torch.batch_norm(x, m.gain, m.offset, m.mean, m.var, False, 0.1, 1e-2, False),
    ],
)
def test_a_functional_batch_norm_is_read_with_its_arguments_in_their_order(
    call: Callable[[Any, Tensor], Tensor],
) -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    model = Functional(call).double().eval()
    for graph_module in (capture(model, x), capture(export(model, (x,)))):
        assert len(scale_shifts(graph_module, x)) == 1


@pytest.mark.parametrize(
    ("before", "rank"),
    [
        (nn.Sequential(nn.Conv1d(3, 4, 1)), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout()), 2),
        (nn.Sequential(nn.ConvTranspose3d(3, 4, 1)), 3),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.Linear(5, 5), nn.GELU()), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), 0),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(3, 4)), 0),
    ],
)
def test_without_example_inputs_the_layers_before_tell_the_axes(
    before: nn.Sequential, rank: int
) -> None:
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank]
    model = nn.Sequential(*before, norm(4)).eval()
    graph_module = capture(model)
    assert refusals(graph_module) == {}
    shape = (2, 3) if rank == 0 and not isinstance(before[0], nn.AdaptiveAvgPool2d) else None
    x = torch.randn(*(shape or (2, 3, *(5,) * (rank or 2))))
    assert scale_shifts(graph_module, x)[-1].rank == rank


class Unchecked(nn.BatchNorm2d):
    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Takes inputs of every rank."""


def test_a_norm_that_refuses_other_ranks_tells_its_own() -> None:
    assert refusals(capture(nn.Sequential(nn.BatchNorm2d(4)).eval())) == {}
    assert refusals(capture(nn.Sequential(nn.BatchNorm3d(4)).eval())) == {}
    (reason,) = refusals(calling(Unchecked(4))).values()
    assert reason.startswith(UNKNOWN)


def test_a_norm_behind_a_layer_that_takes_images_without_a_batch_axis_is_refused() -> None:
    model = nn.Sequential(nn.MaxPool2d(2, 1), nn.BatchNorm1d(2)).eval()
    x = torch.randn(5, 3, 4)
    assert [reason.startswith(UNKNOWN) for reason in refusals(capture(model)).values()] == [True]
    (operator,) = scale_shifts(capture(model, x), x)
    assert operator.rank == 1


@pytest.mark.parametrize("before", [[], [nn.Linear(4, 4)], [nn.Unflatten(1, (4, 1))]])
def test_where_nothing_tells_the_axes_it_is_refused_until_example_inputs_do(
    before: list[nn.Module],
) -> None:
    model = nn.Sequential(*before, nn.BatchNorm1d(4)).eval()
    assert [reason.startswith(UNKNOWN) for reason in refusals(capture(model)).values()] == [True]
    shape = (5, 4) if before and isinstance(before[0], nn.Unflatten) else (5, 4, 4)
    assert refusals(capture(model, torch.randn(*shape))) == {}


def test_batch_norm_behind_a_linear_on_three_axes_is_not_on_the_linears_axis() -> None:
    model = randomised(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    linear, norm = read_operators(capture(model, x), x)
    assert (linear.rank, norm.rank) == (0, 1)


def test_batch_norm_without_running_statistics_is_refused_in_each_dialect() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert list(refusals(capture(model)).values()) == [BATCH]
    exported = capture(export(model, (torch.randn(2, 3, 4, 4),)))
    assert list(refusals(exported).values()) == [BATCH]


class Twice(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


def test_a_batch_norm_with_a_forward_of_its_own_is_refused() -> None:
    reason = "Twice overrides the forward of a batch-norm"
    assert refusals(calling(Twice(4))) == {"op": reason}


def test_half_precision_statistics_are_read_in_float64() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4)).half().eval()
    x = torch.randn(2, 4, 3, 3).half()
    from_module = capture(model, x)
    node = next(node for node in from_module.graph.nodes if node.op == "call_module")
    call = read_affine(from_module, node)
    assert isinstance(call, AffineCall)
    assert isinstance(call.operator, ScaleShift)
    assert call.operator.scale.dtype == torch.float64
    assert call.like is not None
    assert call.like.dtype == torch.float16
