"""Batch-norm is read in eval, over axis 1, whatever form it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from checks import assert_close, calling, randomised, read_operators, refusals
from torch import Tensor, nn
from torch.export import export

import fxreduce
from fxreduce.graph.affine import AffineCall, read_affine
from fxreduce.graph.capture import capture
from fxreduce.graph.rectifiers import find_sites
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
    exported = export(model, (x,))
    for form in (model, exported, exported.run_decompositions()):
        (operator,) = scale_shifts(capture(form, x), x)
        assert operator.rank == rank


ATEN = torch.ops.aten
EVAL = (0.1, 1e-2)
DECOMPOSED: dict[str, Callable[[Any, Tensor], Any]] = {
    "no training": lambda m, x: ATEN._native_batch_norm_legit_no_training(
        x, m.gain, m.offset, m.mean, m.var, *EVAL
    ),
    "no update": lambda m, x: ATEN._batch_norm_no_update(x, m.gain, m.offset, m.mean, m.var, *EVAL),
    "native": lambda m, x: ATEN.native_batch_norm(
        x, None, m.offset, m.mean, m.var, training=False, momentum=0.1, eps=1e-2
    ),
    "legit": lambda m, x: ATEN._native_batch_norm_legit(
        x, m.gain, None, m.mean, m.var, False, *EVAL
    ),
}


@pytest.mark.parametrize("name", DECOMPOSED)
def test_what_decompositions_leave_of_a_batch_norm_is_read_as_one(name: str) -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    model = Functional(lambda m, x: DECOMPOSED[name](m, x)[0].relu()).double().eval()
    for graph_module in (capture(model, x), capture(export(model, (x,)))):
        assert len(scale_shifts(graph_module, x)) == 1
        assert len(find_sites(graph_module)) == 1
        assert_close(model(x), graph_module(x))


def test_a_decomposed_batch_norm_whose_statistics_are_read_stays() -> None:
    read = DECOMPOSED["native"]
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    for call in (lambda m, x: read(m, x)[::2], lambda m, x: read(m, x)):
        model = Functional(call).double().eval()
        graph_module = capture(model, x)
        assert scale_shifts(graph_module, x) == []
        assert_close(model(x), graph_module(x))


@pytest.mark.parametrize("kind", ["_native_batch_norm_legit", "native_batch_norm"])
def test_a_decomposed_batch_norm_by_the_batch_s_own_statistics_stays(kind: str) -> None:
    call = getattr(ATEN, kind)
    model = Functional(lambda m, x: call(x, m.gain, m.offset, m.mean, m.var, True, 0.0, 1e-2)[0])
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    graph_module = capture(model.double().eval(), x)
    assert scale_shifts(graph_module, x) == []
    assert_close(model(x), graph_module(x))


def test_an_export_after_decompositions_merges_as_much_as_the_model() -> None:
    model = randomised(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 5, 1),
            nn.BatchNorm2d(5),
            nn.Flatten(),
            nn.Linear(5 * 36, 7),
        )
    )
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    program = export(model, (x,)).run_decompositions()
    for form in (model, program):
        merged = fxreduce.fuse(form, example_inputs=x)
        report = fxreduce.report(merged)
        assert report.operators_after == 2 + (form is model)
        assert_close(model(x), merged(x))


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
