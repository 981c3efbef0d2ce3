"""The trainer: it learns, repeats itself, and stops where numbers go astray."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from two_classes import Tensors, network_without_statistics, small_network, two_classes

from fxreduce.errors import CalibrationError, TrainingError, UnsupportedError
from fxreduce.training.evaluate import Accuracy
from fxreduce.training.settings import TrainingSettings
from fxreduce.training.trainer import Trainer

QUICK = TrainingSettings(epochs=6, batch_size=32, rate=0.02, schedule="cosine")


@pytest.mark.parametrize(
    "settings",
    [
        QUICK,
        replace(QUICK, optimiser="adam", rate=0.01, schedule="multistep", milestones=(3, 5)),
        replace(QUICK, optimiser="adamw", rate=0.01, schedule="linear", warmup=1),
        replace(QUICK, nesterov=True, schedule="onecycle", channels_last=True, clip=1.0),
        replace(QUICK, mixup=0.2, label_smoothing=0.1, warmup=2),
        replace(QUICK, precision="bfloat16", decay_vectors=False),
        replace(QUICK, workers=1, epochs=3, schedule="constant"),
    ],
    ids=["sgd", "adam", "adamw", "onecycle", "mixup", "bfloat16", "workers"],
)
def test_training_learns_and_ends_in_eval_mode(settings: TrainingSettings) -> None:
    data, network = two_classes(), small_network()
    trainer = Trainer(data, settings)
    trainer(network)
    assert not any(part.training for part in network.modules())
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    assert Accuracy(data.part("test", 16))(network) > 0.9
    assert [epoch.number for epoch in trainer.epochs] == list(range(settings.epochs))
    assert trainer.epochs[-1].loss < trainer.epochs[0].loss


def test_a_compiled_module_is_trained_in_place() -> None:
    data, network = two_classes(), small_network()
    names = list(network.state_dict())
    Trainer(data, replace(QUICK, compile="aot_eager", epochs=3))(network)
    assert list(network.state_dict()) == names
    assert Accuracy(data.part("test", 16))(network) > 0.9


def test_the_seed_decides_the_result_and_the_callers_random_numbers_go_on() -> None:
    states = []
    for seed in (1, 1, 2):
        network = small_network()
        torch.manual_seed(7)
        Trainer(two_classes(), replace(QUICK, mixup=0.2), seed=seed)(network)
        drawn = torch.rand(3)
        torch.manual_seed(7)
        assert torch.equal(drawn, torch.rand(3))
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


def test_workers_do_not_change_the_result() -> None:
    weights = []
    for workers in (0, 2):
        network = small_network()
        Trainer(two_classes(), replace(QUICK, epochs=2, workers=workers))(network)
        weights.append(network[0].weight)
    assert torch.equal(*weights)


def test_each_call_starts_from_a_fresh_optimiser_at_the_full_rate() -> None:
    trainer = Trainer(two_classes(), replace(QUICK, epochs=2, batch_size=64))
    for _ in range(2):
        trainer(small_network())
    assert [epoch.rate for epoch in trainer.epochs[:2]] == [
        epoch.rate for epoch in trainer.epochs[2:]
    ]
    assert trainer.epochs[0].loss == trainer.epochs[2].loss


def test_a_step_is_the_published_one_of_sgd_with_all_weights_decaying() -> None:
    data, network = two_classes(8, torch.float64), network_without_statistics()
    data = replace(data, source=Frozen(data.source.inputs, data.source.labels))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    inputs, labels = data.source.fetch(data.train)
    loss = nn.functional.cross_entropy(network(inputs), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    Trainer(data, TrainingSettings(epochs=1, rate=0.1, weight_decay=0.5))(network)
    for start, gradient, after in zip(before, gradients, network.parameters(), strict=True):
        torch.testing.assert_close(after, start - 0.1 * (gradient + 0.5 * start))


class Frozen(Tensors):
    """Samples that do not vary."""

    def vary(self, indices: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fetch(indices)


def test_vectors_can_be_kept_from_decaying() -> None:
    data, network = two_classes(8, torch.float64), network_without_statistics()
    free = network_without_statistics()
    settings = TrainingSettings(epochs=1, rate=0.1, weight_decay=0.5)
    Trainer(data, settings)(network)
    Trainer(data, replace(settings, decay_vectors=False))(free)
    assert torch.equal(network[0].weight, free[0].weight)
    assert not torch.equal(network[0].bias, free[0].bias)


def test_the_loss_can_be_changed_and_epochs_are_told_of() -> None:
    network, told = small_network(), []

    def pull(
        module: nn.Module, loss: torch.Tensor, logits: torch.Tensor, inputs: torch.Tensor
    ) -> torch.Tensor:
        assert module is network
        assert len(inputs) == len(logits)
        return loss + logits.square().mean()

    settings = replace(QUICK, schedule="constant", epochs=10)
    trainer = Trainer(two_classes(), settings, change_loss=pull, begin_epoch=told.append)
    trainer(network)
    inputs, _ = two_classes().source.fetch(torch.arange(32))
    with torch.no_grad():
        assert network(inputs).abs().mean() < 0.6
    assert told == [network] * 10


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights() -> None:
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_network()
            self.steps = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += self.training
            return self.inner(x) * (1.0 if self.steps <= 8 else float("nan"))

    network, expected = Explodes(), small_network()
    settings = replace(QUICK, schedule="constant")  # four steps an epoch
    with pytest.raises(TrainingError, match=r"in epoch 3 the loss is nan.*weights of epoch 2"):
        Trainer(two_classes(), settings)(network)
    assert not network.training
    Trainer(two_classes(), replace(settings, epochs=2))(expected)
    good = expected.state_dict()
    assert all(torch.equal(value, good[name]) for name, value in network.inner.state_dict().items())


def test_too_many_classes_for_the_logits_are_refused() -> None:
    data = replace(two_classes(), classes=10)
    with pytest.raises(UnsupportedError, match="10 classes; Sequential returns 2 logits"):
        Trainer(data, QUICK)(small_network())


def test_data_without_a_training_sample_are_refused() -> None:
    data = replace(two_classes(), train=torch.arange(0))
    with pytest.raises(CalibrationError, match="there are 0 samples"):
        Trainer(data, QUICK)(small_network())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 0}, "epochs is at least 1; got 0"),
        ({"rate": -0.1}, "rate is above 0"),
        ({"optimiser": "lion"}, "one of sgd, adam, adamw; got lion"),
        ({"schedule": "steps"}, "one of constant, multistep"),
        ({"precision": "int8"}, "one of float32"),
        ({"warmup": 200.0}, "warmup is from 0 to epochs"),
        ({"learning_rate": 0.1}, "no training setting 'learning_rate'; there are epochs"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        TrainingSettings.of(values)
