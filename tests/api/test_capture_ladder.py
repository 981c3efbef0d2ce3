"""Which rung of the capture ladder serves, what the report says of it, and what the graph takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import fxreduce
from fxreduce.graph.capture import capture_record
from fxreduce.graph.compare import difference
from fxreduce.graph.export import trace_export
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.signature import Arguments
from fxreduce.graph.trace import trace
from tests.models import images, points, seeded

X = points(5, 6)


class Padded(nn.Module):
    """Padding that follows from the size of the image, which only torch.export can capture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, image: Tensor) -> Tensor:
        pad = max(0, (image.shape[-1] - 1) // 2 * 2 + 3 - image.shape[-1])
        x = self.norm(self.conv(F.pad(image, (0, pad, 0, pad))))
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 3])
def test_torch_export_keeps_batch_and_size_of_the_image_open(batch: int) -> None:
    model = seeded(Padded)
    captured = fxreduce.capture(model, torch.randn(batch, 3, 8, 8))
    assert capture_record(captured).rung == "torch.export"
    for shape in ((1, 3, 8, 8), (4, 3, 8, 8), (2, 3, 11, 11), (7, 3, 16, 16)):
        x = torch.randn(shape)
        assert torch.equal(captured(x), model(x)), shape


def test_the_report_says_which_rung_served_and_why_the_earlier_ones_did_not() -> None:
    fused = fxreduce.fuse(seeded(Padded), example_inputs=torch.randn(2, 3, 8, 8))
    report = fxreduce.report(fused)
    assert report.rung == "torch.export"
    assert report.operators_after == 2  # the batch-norm went into the convolution
    line = "symbolic trace did not capture the model: "
    assert any(each.startswith(line) and len(each) > len(line) + 10 for each in report.decisions)


def test_weights_keep_their_names_and_stay_trainable_whatever_captured_the_model() -> None:
    model = seeded(Padded)
    model.head.weight.requires_grad_(False)
    captured = fxreduce.capture(model, torch.randn(2, 3, 8, 8))
    expected = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in captured.named_parameters()} == expected
    captured.load_state_dict(model.state_dict(), strict=False)
    captured.conv.weight.data.zero_()
    assert model.conv.weight.abs().sum() > 0


class Typed(nn.Module):
    """A trace that asks for the type of its input goes another way than the model."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Any) -> Tensor:
        return self.fc(x).relu() if isinstance(x, Tensor) else self.fc(x)


def test_a_trace_that_computes_something_else_does_not_serve() -> None:
    model = seeded(Typed)
    captured = fxreduce.capture(model, X)
    record = capture_record(captured)
    assert record.rung == "torch.export"
    assert "differs from the model's" in record.failed[0][1]
    assert torch.equal(captured(X), model(X))


def test_rectifiers_inside_of_torch_s_encoder_layers_are_shown_with_example_inputs() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 6)
    captured = fxreduce.capture(model, x)
    names = [site.name for site in find_sites(captured)]
    assert names == ["layers.0.relu", "layers.1.relu"]
    torch.testing.assert_close(captured(x[:, :4]), model(x[:, :4]))
    unseen = fxreduce.report(fxreduce.fuse(nn.Sequential(model, nn.Linear(6, 6)).eval()))
    assert unseen.sites == ()
    assert any("0 is kept whole, rectifiers inside are not seen" in d for d in unseen.decisions)


class MyReLU(nn.ReLU):
    """A rectifier of the user's own, which keeps the forward of torch's."""


class Names(nn.Module):
    """Shared modules and functions, one module under two names, and one called by a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.fc = nn.Linear(6, 6)
        self.again = self.act
        self.same = self.fc
        self.own = MyReLU()
        self.block = nn.Sequential(self.fc, self.act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.same(x))
        x = self.own(self.block(self.act(x)))
        return F.relu(F.relu(self.block(x)) - 0.1) * self.own(x)


def test_sites_and_weights_have_the_same_names_on_every_rung() -> None:
    model, given = seeded(Names), Arguments((X,))
    traced, exported = (each(copy.deepcopy(model), given) for each in (trace, trace_export))
    names = ["act", "act#1", "own", "act#2", "act#3", "relu", "relu#1", "own#1"]
    for captured in (traced, exported):
        assert sorted(site.name for site in find_sites(captured)) == sorted(names)
        assert {name for name, _ in captured.named_parameters()} == {"fc.weight", "fc.bias"}
    order = [site.name for site in find_sites(traced)]
    assert [site.name for site in find_sites(exported)] == order


@dataclass
class Scores:
    """What a model returns."""

    classes: Tensor
    features: tuple[Tensor, ...]
    nothing: None = None


class Structured(nn.Module):
    """Several inputs of several kinds, and a dataclass as output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(
        self,
        pair: dict[str, Tensor],
        more: list[Tensor],
        mask: Tensor | None = None,
        *,
        weight: Tensor,
        flag: bool = False,
        name: str = "a",
    ) -> Scores:
        x = self.fc(pair["left"] + pair["right"]).relu() + more[0] * weight
        if mask is not None:
            x = x * mask
        if flag or name == "b":
            x = -x
        return Scores(self.head(x), (x, more[1]))


def structured(mask: Tensor | None = None) -> tuple[Any, dict[str, Any]]:
    more = [torch.randn(5, 6), torch.randn(5, 6)]
    given = {"mask": mask} if mask is not None else {}
    return ({"left": X, "right": X}, more), {"weight": torch.rand(6), **given}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rung", [trace, trace_export])
def test_structured_inputs_and_outputs_stay_what_they_are(rung: Any, masked: bool) -> None:
    model = seeded(Structured)
    args, kwargs = structured(torch.rand(6) if masked else None)
    difference(model(*args, **kwargs), model(*args, **kwargs))  # makes the dataclass known
    captured = rung(copy.deepcopy(model), Arguments(args, kwargs))
    again, more = structured(torch.rand(6) if masked else None)
    output = captured(*again, **more)
    assert type(output) is Scores
    assert difference(model(*again, **more), output).max_abs == 0


@pytest.mark.parametrize("rung", [trace, trace_export])
def test_optional_arguments_are_those_that_the_model_was_captured_with(rung: Any) -> None:
    model = seeded(Structured)
    args, kwargs = structured()
    difference(model(*args, **kwargs), model(*args, **kwargs))  # makes the dataclass known
    captured = rung(copy.deepcopy(model), Arguments(args, kwargs))
    for name, value in {"mask": torch.rand(6), "flag": True, "name": "b"}.items():
        with pytest.raises(fxreduce.CaptureError, match=f"captured with {name}=.*give {name}"):
            captured(*args, **kwargs, **{name: value})
    args, kwargs = structured(torch.rand(6))
    captured = rung(copy.deepcopy(model), Arguments(args, kwargs))
    del kwargs["mask"]
    with pytest.raises(fxreduce.CaptureError, match=r"captured with mask.* it was left out"):
        captured(*args, **kwargs)


def test_a_dataclass_s_tensors_are_compared() -> None:
    args, kwargs = structured()
    model, other = seeded(Structured), seeded(Structured)
    other.head.bias.data += 1
    difference_of_bias = difference(model(*args, **kwargs), other(*args, **kwargs))
    assert difference_of_bias.max_abs == pytest.approx(1.0)


def test_a_model_of_structured_inputs_is_reduced_end_to_end() -> None:
    model = seeded(Structured)
    batches = [structured(torch.rand(6)) for _ in range(3)]
    reduced = fxreduce.apply(
        model, batches, budget=1, forward=lambda module, batch: module(*batch[0], **batch[1])
    )
    assert fxreduce.report(reduced).removed == ("relu",)
    args, kwargs = batches[0]
    assert type(reduced(*args, **kwargs)) is Scores


class Open(nn.Module):
    """As many inputs as one likes, by place and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, *more: Tensor, flip: bool = False, **named: Tensor) -> Tensor:
        x = sum(more) * named["scale"] if "scale" in named else sum(more)
        x = self.head(self.fc(x).relu())
        return -x if flip else x


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((X, X), {}), ((X,), {"scale": torch.rand(6)}), ((X, X, X), {"flip": True})],
)
def test_inputs_in_any_number_are_those_that_the_model_was_captured_with(
    args: tuple[Tensor, ...], kwargs: dict[str, Any]
) -> None:
    model = seeded(Open)
    captured = fxreduce.capture(model, Arguments(args, kwargs))
    assert capture_record(captured).rung == "torch.export"
    other = [torch.randn(3, 6) for _ in args]
    assert torch.equal(captured(*other, **kwargs), model(*other, **kwargs))
    with pytest.raises((fxreduce.CaptureError, TypeError)):
        captured(*args, X, **kwargs)


def test_a_wrapper_that_takes_everything_by_name_is_reduced() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Labelled()

        def forward(self, **batch: Tensor) -> Tensor:
            return self.inner(**batch)["scores"]

    model = seeded(Wrapper)
    reduced = fxreduce.apply(
        model, [{"x": X}] * 2, budget=1, forward=lambda module, batch: module(**batch)
    )
    assert fxreduce.report(reduced).operators_after == 1
    with pytest.raises(fxreduce.CaptureError, match=r"captured with x.* it was left out"):
        reduced(x=None)


class Labelled(nn.Module):
    """A model that computes its loss where it is given labels, as transformers' do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.head(self.fc(x).relu())
        return {"scores": scores} | (
            {} if labels is None else {"loss": F.cross_entropy(scores, labels)}
        )


def test_labels_that_the_model_would_take_are_left_out_too() -> None:
    batches = [{"x": X, "labels": torch.zeros(5, dtype=torch.long)}]
    reduced = fxreduce.apply(seeded(Labelled), batches, budget=1)
    assert reduced(X).keys() == {"scores"}


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, compiled, nn.parallel.DistributedDataParallel],
    ids=["DataParallel", "OptimizedModule", "DistributedDataParallel"],
)
def test_wrappers_are_left_out_with_a_note(
    wrap: Callable[[nn.Module], nn.Module], request: pytest.FixtureRequest
) -> None:
    model = seeded(Names)
    kind = request.node.callspec.id
    reduced = fxreduce.apply(wrap(model), [X], budget=1)
    plain = fxreduce.apply(model, [X], budget=1)
    report = fxreduce.report(reduced)
    assert f"{kind} around the model is left out" in report.decisions
    assert [site.name for site in report.sites] == [s.name for s in fxreduce.report(plain).sites]
    assert torch.equal(reduced(X), plain(X))


def test_compiled_parts_of_a_model_are_unwrapped_too() -> None:
    model = seeded(lambda: nn.Sequential(compiled(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))))
    fused = fxreduce.fuse(model)
    assert "OptimizedModule around 0 is left out" in fxreduce.report(fused).decisions
    assert [site.name for site in fxreduce.report(fused).sites] == ["0.1"]
    assert torch.equal(fused(X), model(X))


def test_torch_script_is_refused_with_what_to_pass_instead() -> None:
    with pytest.raises(fxreduce.CaptureError, match=r"TorchScript.* pass the module that it was"):
        fxreduce.capture(torch.jit.trace(nn.Linear(6, 6).eval(), X))


def test_example_inputs_that_forward_does_not_take_are_refused() -> None:
    with pytest.raises(fxreduce.CaptureError, match=r"forward does not take the example inputs"):
        fxreduce.capture(seeded(Labelled), {"y": X})
    with pytest.raises(fxreduce.CaptureError, match=r"does not run on the example inputs: .*mat1"):
        fxreduce.capture(seeded(Labelled), images(2, seed=1)[0])


class Counting(nn.Module):
    """A buffer that every call writes, and that scales the output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.add_(1)
        return self.fc(x) * self.scale


@pytest.mark.parametrize("rung", [trace, trace_export])
def test_a_buffer_that_the_model_writes_is_not_folded(rung: Any) -> None:
    model = seeded(Counting)
    captured = rung(copy.deepcopy(model), Arguments((X,)))
    fused = fxreduce.fuse(captured, example_inputs=X)
    for _ in range(3):
        torch.testing.assert_close(fused(X), model(X))


def test_capturing_leaves_the_state_of_the_model_and_of_the_copy_as_it_was() -> None:
    model = seeded(Counting)
    captured = fxreduce.capture(model, X)
    assert torch.equal(model.scale, torch.ones(6))
    assert torch.equal(captured(X), model(X))
