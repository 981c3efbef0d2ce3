"""Accuracy and agreement."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fxreduce.errors import UnsupportedError
from fxreduce.training.evaluate import Accuracy, CrossEntropy, agreement, logits


def test_accuracy_and_agreement_weigh_images_not_batches() -> None:
    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Flipped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x[:, :1] > 5, x.flip(1), x)

    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [9.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    batches = [(scores[:3], labels[:3]), (scores[3:], labels[3:])]
    assert Accuracy(batches)(First()) == 0.5
    expected = nn.functional.cross_entropy(scores, labels).item()
    assert CrossEntropy(batches)(First()) == pytest.approx(expected)
    assert agreement(First(), Flipped(), batches, "cpu") == 0.75


def test_a_module_is_judged_in_eval_mode_and_left_in_its_own() -> None:
    class Mode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Dropout()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not self.inner.training
            return x

    module = Mode().train()
    module.inner.eval()
    assert Accuracy([(torch.eye(2), torch.tensor([0, 1]))])(module) == 1.0
    assert module.training
    assert not module.inner.training


def test_logits_are_found_in_what_models_return() -> None:
    class Named(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> object:
            return SimpleNamespace(loss=torch.zeros(()), logits=ids * mask)

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x + 1

    x = torch.ones(2, 3)
    assert torch.equal(logits(Named(), {"ids": x, "mask": 2 * x}), 2 * x)
    assert torch.equal(logits(Pair(), x), x)
    with pytest.raises(UnsupportedError, match=r"logits \[N, classes\]; Identity returns a tensor"):
        logits(nn.Identity(), torch.ones(2, 3, 4))
