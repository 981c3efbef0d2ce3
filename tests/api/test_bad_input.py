"""Bad input is refused with a typed error that says what to do, and the model stays untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

import fxreduce
from tests.models import Branching, Residual, Small, images, seeded, snapshot

ENTRIES = pytest.mark.parametrize("entry", [fxreduce.analyze, fxreduce.apply])
NAN, INF = float("nan"), float("inf")


def refused(
    entry: Callable[..., Any],
    error: type[fxreduce.FxReduceError],
    message: str,
    model: nn.Module,
    *args: Any,
    **kwargs: Any,
) -> None:
    before = snapshot(model)
    with pytest.raises(error, match=message):
        entry(model, *args, **kwargs)
    assert snapshot(model) == before


def spoiled(value: float) -> Tensor:
    batch = images(4)[0]
    batch[2, 1, 3, 3] = value
    return batch


@ENTRIES
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], r"needs at least one batch; the loader yielded none\. Pass a loader"),
        (iter(()), r"needs at least one batch"),
        (None, r"must be an iterable of batches; seen: NoneType"),
        (7, r"must be an iterable of batches; seen: int"),
        (images(4)[0], r"seen: Tensor\. A single batch goes into a list: \[batch\]"),
        ({"image": images(4)[0]}, r"seen: dict\. A single batch goes into a list"),
        ([torch.randn(2, 4, 8, 8)], r"batch 0 of shapes \(2, 4, 8, 8\).*Check the batch"),
        ([torch.randn(8)], r"does not run on batch 0 of shapes \(8,\)"),
        ([torch.zeros(2, 3, 8, 8, dtype=torch.long)], r"does not run on batch 0"),
        (["a string"], r"does not run on batch 0 of shapes none \(a str\)"),
        ([()], r"takes 1 inputs \(image\), the batch has 0; pass forward="),
        (
            [{"pixels": images(4)[0]}],
            r"none of the batch's names \(pixels\) is an input.*\(image\)",
        ),
    ],
)
def test_data_that_the_model_cannot_read_are_refused(entry: Any, loader: Any, message: str) -> None:
    refused(entry, fxreduce.CalibrationError, message, seeded(Small), loader)


@ENTRIES
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite_are_traced_to_batch_and_site(entry: Any, value: float) -> None:
    batches = [*images(4), spoiled(value), *images(4)]
    message = r"pre-activation of act must be finite; .* in batch 1\b.*\. Check that batch"
    refused(entry, fxreduce.CalibrationError, message, seeded(Small), batches)


@ENTRIES
def test_a_later_batch_of_another_shape_is_named(entry: Any) -> None:
    message = r"does not run on batch 1 of shapes \(2, 1, 8, 8\)"
    batches = [*images(4), torch.randn(2, 1, 8, 8), *images(4)]
    refused(entry, fxreduce.CalibrationError, message, seeded(Small), batches)


@ENTRIES
def test_channels_that_differ_between_batches_are_named(entry: Any) -> None:
    model = seeded(lambda: nn.Sequential(nn.ReLU()))
    message = r"0 must have the same channels in every batch; seen: 3, then 4"
    batches = [torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 3)]
    refused(entry, fxreduce.CalibrationError, message, model, batches)


@ENTRIES
def test_a_forward_that_does_not_call_the_module_it_is_given_is_refused(entry: Any) -> None:
    model = seeded(Small)
    with pytest.raises(fxreduce.CaptureError, match=r"must call the module that it is given; it"):
        entry(model, images(2), forward=lambda module, batch: model(batch))


def test_scores_that_are_not_finite_do_not_count_as_agreement() -> None:
    batches = [*images(4), spoiled(NAN)]  # the second one is held out, and nothing else sees it
    message = r"scores must be finite; on a held-out calibration batch"
    refused(fxreduce.apply, fxreduce.CalibrationError, message, seeded(Small), batches)


@pytest.mark.parametrize("model", [None, "resnet18", Small, torch.zeros(3)])
@pytest.mark.parametrize(
    "entry",
    [
        lambda model: fxreduce.analyze(model, images(2)),
        lambda model: fxreduce.apply(model, images(2)),
        fxreduce.capture,
        fxreduce.fuse,
        lambda model: fxreduce.linearize(model, []),
        lambda model: fxreduce.verify(model, seeded(Small), images(2)[0]),
        lambda model: fxreduce.verify(seeded(Small), model, images(2)[0]),
    ],
)
def test_what_is_no_model_is_refused(entry: Any, model: Any) -> None:
    with pytest.raises(fxreduce.CaptureError, match=r"must be an nn\.Module, a torch\.fx\.Graph"):
        entry(model)


MODE_ENTRIES = pytest.mark.parametrize(
    "entry",
    [
        pytest.param(lambda model: fxreduce.analyze(model, images(2)), id="analyze"),
        pytest.param(lambda model: fxreduce.apply(model, images(2)), id="apply"),
        pytest.param(fxreduce.capture, id="capture"),
        pytest.param(fxreduce.fuse, id="fuse"),
        pytest.param(lambda model: fxreduce.linearize(model, ["act"]), id="linearize"),
        pytest.param(lambda model: fxreduce.verify(model, model, images(2)[0]), id="verify"),
    ],
)


@MODE_ENTRIES
def test_a_model_in_train_mode_is_refused(entry: Any) -> None:
    message = r"Small is in train mode: call model\.eval\(\) first"
    refused(entry, fxreduce.CaptureError, message, seeded(Small).train())


@MODE_ENTRIES
def test_a_submodule_in_train_mode_is_refused(entry: Any) -> None:
    model = seeded(Small)
    model.norm.train()
    refused(entry, fxreduce.CaptureError, r"BatchNorm2d norm is in train mode: call", model)


@MODE_ENTRIES
def test_a_graph_module_with_a_batch_norm_in_train_mode_is_refused(entry: Any) -> None:
    graph_module = torch.fx.symbolic_trace(seeded(Small).train())
    refused(entry, fxreduce.CaptureError, r"norm \(norm\) is in train mode: call", graph_module)


class Noisy(nn.Module):
    """A function that a graph traced in train mode bakes on."""

    def __init__(self, call: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.mix, self.call = nn.Conv2d(3, 4, 1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.mix(x).relu(), self.training)


NOISE: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "dropout": lambda x, on: functional.dropout(x, 0.5, on),
    "dropout2d": lambda x, on: functional.dropout2d(x, 0.5, training=on),
    "alpha_dropout": lambda x, on: functional.alpha_dropout(x, 0.5, on),
    "feature_alpha_dropout": lambda x, on: functional.feature_alpha_dropout(x, 0.5, on),
    "rrelu": lambda x, on: functional.rrelu(x, training=on),
    "torch.dropout": lambda x, on: torch.dropout(x, 0.5, on),
    "batch_norm": lambda x, on: functional.batch_norm(
        x, torch.zeros(4), torch.ones(4), training=on
    ),
}


@pytest.mark.parametrize("noise", NOISE)
def test_a_graph_with_a_function_in_train_mode_is_refused(noise: str) -> None:
    model = Noisy(NOISE[noise])
    message = r"is in train mode: call eval\(\) on the model and capture it again"
    refused(
        fxreduce.apply, fxreduce.CaptureError, message, torch.fx.symbolic_trace(model), images(2)
    )
    fxreduce.apply(model.eval(), images(2), budget=1)


def test_stochastic_depth_that_was_traced_in_train_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), StochasticDepth(0.5, "row"))
    message = r"stochastic_depth .* is in train mode"
    refused(fxreduce.capture, fxreduce.CaptureError, message, torch.fx.symbolic_trace(model))


def test_dropout_that_is_always_on_is_refused_with_the_way_out() -> None:
    model = seeded(lambda: Noisy(lambda x, on: functional.dropout(x)))
    message = r"a functional one needs training=self\.training"
    refused(fxreduce.capture, fxreduce.CaptureError, message, model)


def test_a_program_exported_in_train_mode_is_refused() -> None:
    exported = torch.export.export(seeded(Residual).train(), (images(2)[0],))
    with pytest.raises(fxreduce.CaptureError, match=r"batch_norm.* is in train mode"):
        fxreduce.apply(exported, images(2))


def test_batch_norm_without_running_statistics_is_no_train_mode() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    )
    exported = torch.export.export(model, (images(2)[0],))
    for captured in (fxreduce.capture(model), fxreduce.capture(exported)):
        torch.testing.assert_close(captured(images(2)[0]), model(images(2)[0]))


@ENTRIES
def test_control_flow_that_depends_on_data_is_refused_with_the_way_out(entry: Any) -> None:
    message = r"Branching could not be captured \(symbolic trace: .*; torch\.export: .*\)\. Pass ex"
    refused(entry, fxreduce.CaptureError, message, seeded(Branching), [torch.randn(3)])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"importance": "magic"},
            "PlanError",
            r"callable or one of 'entropy', 'residual', 'sensitivity', 'batchnorm'; seen: 'magic'",
        ),
        ({"importance": ["entropy"]}, "PlanError", r"a callable or one of 'entropy'"),
        ({"importance": lambda site: NAN}, "PlanError", r"a number for every site.*act.* is nan"),
        ({"importance": lambda site: None}, "PlanError", r"a number for every site.* is None"),
        ({"cost": "gold"}, "UnsupportedError", r"a CostModel or one of 'flops'.*seen: 'gold'"),
        ({"cost": 3}, "UnsupportedError", r"a CostModel or one of 'flops'.*seen: 3"),
        ({"compensate": "magic"}, "UnsupportedError", r"one of 'identity', 'channel'.*'magic'"),
        (
            {"disable": ("magic",)},
            "UnsupportedError",
            r"\(.*fuse_chain.*\).*'magic'",
        ),
        ({"disable": "magic"}, "UnsupportedError", r"names of passes .* seen: 'magic'"),
        ({"include": ["no*"]}, "PlanError", r"include takes .*'no\*' matches none of act, act2"),
        ({"exclude": ["act", "x"]}, "PlanError", r"exclude takes .*'x' matches none of act, act2"),
    ],
)
def test_an_unknown_name_is_refused_with_the_valid_ones(
    options: dict[str, Any], error: str, message: str
) -> None:
    refused(fxreduce.apply, getattr(fxreduce, error), message, seeded(Small), images(2), **options)


def test_an_unknown_entropy_is_refused_with_the_valid_ones() -> None:
    for entropy in ("magic", ["paper"]):
        with pytest.raises(fxreduce.FxReduceError, match=r"one of 'paper', 'easier-code'"):
            fxreduce.analyze(seeded(Small), images(2), entropy=entropy)


def test_options_are_refused_before_the_data_are_read() -> None:
    def loader() -> Any:
        raise AssertionError("the data were read")
        yield

    for options in ({"budget": "much"}, {"cost": "gold"}, {"disable": "magic"}):
        with pytest.raises(fxreduce.FxReduceError):
            fxreduce.apply(seeded(Small), loader(), **options)
