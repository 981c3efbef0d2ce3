"""Comparing outputs, counting operators and learning shapes."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

from fxreduce.errors import CaptureError, EquivalenceError
from fxreduce.graph.capture import capture
from fxreduce.graph.compare import Difference, difference, model_dtype, tolerance
from fxreduce.graph.count import Count, count_affine
from fxreduce.graph.nodes import shape_of
from fxreduce.graph.shapes import call, graph_inputs, propagate_shapes
from fxreduce.graph.signature import Arguments

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.5], Difference(0.5, 0.25)),
        ([0.0, 0.0], [0.0, 3.0], Difference(3.0, 3.0)),
        ([INF, 1.0], [INF, 1.0], Difference(0.0, 0.0)),
        ([NAN, 1.0], [NAN, 1.0], Difference(0.0, 0.0)),
        ([], [], Difference(0.0, 0.0)),
    ],
)
def test_a_difference_is_taken_relative_to_the_largest_value(
    a: list[float], b: list[float], expected: Difference
) -> None:
    assert difference(torch.tensor(a), torch.tensor(b)) == expected


@pytest.mark.parametrize(("a", "b"), [(1.0, NAN), (1.0, INF), (NAN, 1.0), (INF, -INF)])
def test_what_is_not_finite_on_one_side_alone_is_infinitely_far(a: float, b: float) -> None:
    assert difference(torch.tensor([a, 1]), torch.tensor([b, 1])).max_abs == INF


def test_the_worst_of_several_outputs_counts_and_no_tensors_are_left_out() -> None:
    reference = {"a": torch.tensor([10.0]), "b": (torch.tensor([1.0]), "text")}
    other = {"a": torch.tensor([11.0]), "b": (torch.tensor([1.5]), "other")}
    assert difference(reference, other) == Difference(1.0, 0.5)


def test_other_structures_and_shapes_are_no_matter_of_tolerance() -> None:
    with pytest.raises(EquivalenceError, match="different structures"):
        difference((torch.ones(1),), {"out": torch.ones(1)})
    with pytest.raises(EquivalenceError, match=r"output\[0\] and output\[0\], output\[1\]"):
        difference((torch.ones(1),), (torch.ones(1), torch.ones(1)))
    with pytest.raises(EquivalenceError, match=r"an output of shape \(2,\) became \(1, 2\)"):
        difference(torch.ones(2), torch.ones(1, 2))
    with pytest.raises(EquivalenceError, match=r"an output of shape \(2,\) became float"):
        difference([torch.ones(2)], [1.0])


def test_the_class_of_a_container_is_no_difference() -> None:
    ours = torch.fx.immutable_collections.immutable_dict({"out": torch.ones(1)})
    assert difference(OrderedDict(out=torch.ones(1)), ours).max_abs == 0


def test_the_tolerance_follows_the_least_precise_parameter() -> None:
    assert tolerance(torch.float64) == 1e-9
    assert tolerance(torch.float16) > tolerance(torch.float32) > tolerance(torch.float64)
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half(), nn.Linear(2, 2).double())
    assert model_dtype(mixed) == torch.float16
    assert model_dtype(nn.ReLU()) == torch.float64


COUNTED = nn.Sequential(
    nn.Conv2d(3, 4, 3, stride=2, padding=1),
    nn.BatchNorm2d(4),
    nn.ConvTranspose2d(4, 2, 2, groups=2),
    nn.Conv2d(2, 2, 2, padding="same"),
    nn.Flatten(),
    nn.Linear(2 * 5 * 4, 5),
).eval()


def test_operators_are_counted_unreadable_ones_too_and_multiply_adds_of_one_image() -> None:
    graph_module = capture(COUNTED, torch.randn(7, 3, 8, 6))
    # Output 4 x 3 with 3 * 4 * 9 weights; input 4 x 3 with 4 * 1 * 4 weights; 40 * 5.
    assert count_affine(graph_module) == Count(5, 12 * 108 + 12 * 16 + 200)


def test_without_shapes_the_multiply_adds_are_not_known() -> None:
    assert count_affine(capture(COUNTED)) == Count(5, None)


def test_an_exported_graph_counts_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 5)).eval()
    x = torch.randn(2, 3, 5, 5)
    assert count_affine(capture(export(model, (x,)))) == count_affine(capture(model, x))


def test_example_inputs_are_positional_or_by_name() -> None:
    assert Arguments.of((1, 2)) == Arguments((1, 2))
    assert Arguments.of([1, 2]) == Arguments((1, 2))
    assert Arguments.of({"a": 1}) == Arguments((), {"a": 1})
    assert Arguments.of(3) == Arguments((3,))


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: float = 1.0) -> Tensor:
        return (a @ b) * c


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
def test_shapes_are_learned_from_one_run_however_the_inputs_are_given(
    exported: bool, by_name: bool
) -> None:
    a, b = torch.randn(2, 3), torch.randn(3, 5)
    if exported:
        args, kwargs = ((), {"a": a, "b": b}) if by_name else ((a, b), {})
        graph_module = capture(export(Two().eval(), args, kwargs))
    else:
        graph_module = capture(Two().eval())
    propagate_shapes(graph_module, lambda m: call(m, {"a": a, "b": b} if by_name else (a, b)))
    product = next(node for node in graph_module.graph.nodes if "matmul" in node.name)
    assert shape_of(product) == (2, 5)


def test_inputs_of_a_graph_are_in_the_order_of_its_placeholders() -> None:
    graph_module = capture(Two().eval())
    assert graph_inputs(graph_module, (1,), {"c": 3, "b": 2}) == [1, 2, 3]


def test_inputs_that_the_graph_does_not_run_on_are_an_error_that_says_so() -> None:
    with pytest.raises(CaptureError, match="does not run on the example inputs"):
        capture(COUNTED, torch.randn(1, 2, 8, 6))
