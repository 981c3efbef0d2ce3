"""What graph surgery gets wrong where it is done naively: each trap is sprung beside ours."""

from __future__ import annotations

import io
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse as torchs_fuse
from torch.nn.utils import parametrizations

import fxreduce
from fxreduce.graph.rectifiers import find_sites
from fxreduce.graph.values import VALUE, name_values
from tests.checks import assert_close, randomised

X = torch.randn(4, 3, 5, 5, dtype=torch.float64)


class Net(nn.Module):
    """A convolution and its batch-norm, and what `function` does behind them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor] = lambda _, y: y) -> None:
        super().__init__()
        self.function = function
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.norm(self.conv(x)))


def unread(_: Any, y: Tensor) -> Tensor:
    y.relu_()
    return y


def read_twice(_: Any, y: Tensor) -> Tensor:
    z = torch.relu_(y)
    return y + z


def fused(model: nn.Module) -> Tensor:
    return fxreduce.fuse(model, example_inputs=X)(X)


def test_an_in_place_rectifier_whose_result_nobody_reads_is_not_dead_code() -> None:
    model = randomised(Net(unread))
    naive = symbolic_trace(model)
    naive.graph.eliminate_dead_code()
    naive.recompile()
    assert not torch.equal(naive(X), model(X))
    assert_close(model(X), fused(model))
    assert len(find_sites(fxreduce.capture(model))) == 1


def test_who_reads_an_overwritten_tensor_reads_the_result() -> None:
    model = randomised(Net(read_twice))
    naive = symbolic_trace(model)
    for node in naive.graph.nodes:
        if node.target is torch.relu_:
            node.target = torch.relu  # as if the call were pure
    naive.recompile()
    assert not torch.allclose(naive(X), model(X))
    assert_close(model(X), fused(model))


def test_a_graph_that_is_well_formed_may_still_compute_something_else() -> None:
    model = randomised(Net())
    wrong = fxreduce.fuse(model)
    with torch.no_grad():
        next(wrong.parameters()).mul_(1.01)
    wrong.graph.lint()  # sees nothing
    assert not fxreduce.verify(model, wrong, [X]).ok


def test_names_of_values_and_in_place_sums_come_back_from_a_file_and_not_from_a_pickle(
    tmp_path: Path,
) -> None:
    def summed(m: Any, y: Tensor) -> Tensor:
        z = F.relu(y)
        z += y
        return m.last(z)

    model = randomised(Net(summed))
    captured = fxreduce.capture(model)
    name_values(captured)
    file = io.BytesIO()
    pickle.dump(captured, file)
    naive = pickle.loads(file.getvalue())
    assert not any(VALUE in node.meta for node in naive.graph.nodes)
    assert operator.iadd not in {node.target for node in naive.graph.nodes}
    reduced = fxreduce.fuse(model, example_inputs=X)
    fxreduce.save(reduced, tmp_path / "model.safetensors")
    loaded = fxreduce.load(tmp_path / "model.safetensors", model)
    assert torch.equal(loaded(X), reduced(X))
    assert [s.name for s in find_sites(loaded)] == [s.name for s in find_sites(captured)]


def test_a_weight_of_two_layers_is_merged_in_one_and_kept_in_the_other() -> None:
    def both(m: Any, y: Tensor) -> Tensor:
        return m.second(F.relu(y))

    model = Net(both)
    model.second = nn.Conv2d(3, 3, 3, padding=1)
    model.second.weight = model.conv.weight
    model = randomised(model)
    names = dict(model.named_parameters())
    assert "second.weight" not in names  # one of the two alone, unless duplicates are asked for
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    naive = symbolic_trace(model)
    kept = model.conv.weight.detach().clone()
    with torch.no_grad():
        naive.conv.weight.mul_(scale.view(-1, 1, 1, 1))
    assert not torch.equal(naive.second.weight, kept)
    with torch.no_grad():
        naive.conv.weight.copy_(kept)
    assert_close(model(X), fused(model))


def test_a_parametrised_module_is_merged_by_its_effective_weight() -> None:
    model = Net()
    parametrizations.weight_norm(model.conv)
    model = randomised(model)
    with torch.no_grad():
        model.conv.parametrizations.weight.original0.mul_(3)
    assert type(model.conv) is not nn.Conv2d
    assert isinstance(model.conv, nn.Conv2d)
    result = fxreduce.fuse(model, example_inputs=X)
    assert fxreduce.report(result).operators_after == 1
    assert_close(model(X), result(X))


def test_hooks_that_tracing_loses_are_named_in_the_report() -> None:
    model = randomised(Net())
    model.register_forward_hook(lambda *_: torch.zeros(1))
    assert not torch.equal(symbolic_trace(model)(X), model(X))
    result = fxreduce.fuse(model.eval())
    assert any("hooks of the model itself" in line for line in fxreduce.report(result).decisions)


def test_dropout_that_was_traced_in_train_mode_is_refused() -> None:
    model = randomised(Net(lambda m, y: F.dropout(y, 0.5, m.training))).train()
    naive = symbolic_trace(model).eval()
    assert not torch.equal(naive(X), naive(X))
    with pytest.raises(fxreduce.CaptureError, match=r"dropout .*is in train mode"):
        fxreduce.fuse(naive)


@pytest.mark.parametrize("called", ["twice", "by two batch-norms"])
def test_a_convolution_that_is_read_twice_is_not_folded_into_one_batch_norm(called: str) -> None:
    def twice(m: Any, y: Tensor) -> Tensor:
        return m.norm(m.conv(F.relu(y)))

    def shared(m: Any, y: Tensor) -> Tensor:
        return y + m.other(m.conv(F.relu(y)))

    model = Net(twice if called == "twice" else shared)
    model.other = nn.BatchNorm2d(3)
    model = randomised(model)
    assert not torch.allclose(torchs_fuse(model)(X), model(X))
    assert_close(model(X), fused(model))


def test_a_batch_norm_behind_a_linear_normalises_axis_1_and_not_the_linears() -> None:
    model = randomised(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    assert not torch.allclose(torchs_fuse(model)(x), model(x))
    assert_close(model(x), fxreduce.fuse(model, example_inputs=x)(x))
