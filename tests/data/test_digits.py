"""The digits: how they are moved for training, and the frontier version."""

from __future__ import annotations

import torch

from fxreduce.data.digits import FRONTIER, Digits, Motion
from fxreduce.data.formats import ImageFormat
from fxreduce.data.names import open_data

INDICES = torch.arange(20)


def test_no_motion_leaves_an_image_as_it_is() -> None:
    images = torch.randn(3, 1, 9, 9)
    moved = Motion(turn=1.0, stretch=1.0, shift=1.0)(images, torch.zeros(3, 4))
    torch.testing.assert_close(moved, images)


def test_a_quarter_turn_turns_the_image() -> None:
    images = torch.randn(2, 1, 8, 8)
    amounts = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    moved = Motion(turn=torch.pi / 2, stretch=0.0, shift=0.0)(images, amounts)
    torch.testing.assert_close(moved[0], images[0].rot90(1, (1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[1], images[1].rot90(-1, (1, 2)), atol=1e-5, rtol=0)


def test_variations_depend_on_the_seed_and_the_image_alone() -> None:
    for frontier in (False, True):
        digits = Digits.load(1, (12, 12), seed=0, frontier=frontier)
        whole, labels = digits.vary(INDICES, 3)
        assert torch.equal(digits.vary(INDICES[5:9], 3)[0], whole[5:9])
        assert not torch.equal(digits.vary(INDICES, 4)[0], whole)
        assert not torch.equal(digits.fetch(INDICES)[0], whole)
        assert torch.equal(labels, digits.labels[INDICES])


def test_the_frontier_is_moved_and_noisy_and_the_same_at_every_reading() -> None:
    plain = Digits.load(3, (12, 12), seed=0)
    moved = Digits.load(3, (12, 12), seed=0, frontier=True)
    images, _ = moved.fetch(INDICES)
    assert torch.equal(images, moved.fetch(INDICES)[0])
    assert torch.equal(images[:, 0], images[:, 2])
    difference = images - plain.fetch(INDICES)[0]
    assert difference.std() > FRONTIER.noise


def test_both_have_the_same_split() -> None:
    form = ImageFormat.of(1, (8, 8))
    plain, moved = (open_data(name, form, seed=2) for name in ("digits", "digits-frontier"))
    assert torch.equal(plain.train, moved.train)
    assert torch.equal(plain.test, moved.test)
    assert plain.classes == moved.classes == 10
