"""Training of a small classifier from scratch, and the figures that judge classifiers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxreduce.errors import missing_extra

_BATCH = 64
_RATE = 0.1
# How far an image is moved at most: radians, a fraction of its size, a fraction of half its side.
_TURN, _STRETCH, _SHIFT = 0.2, 0.1, 0.2


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    description: str = "training",
    bar: bool = False,
) -> None:
    """Train `network` in place on `images` `[N, C, H, W]`, `labels` `[N]`; leave it in eval mode.

    SGD with Nesterov momentum and one cosine cycle of the learning rate, on images that are moved
    a little each time. `seed` fixes their order and movements.

    Raises:
        UnsupportedError: tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise missing_extra("tqdm", "training", "demo") from None
    random = torch.Generator().manual_seed(seed)
    batches = len(labels) // _BATCH  # what is left over would disturb batch-norm's statistics
    # Only weights decay: a decaying shift of a batch-norm would centre what rectifiers are given.
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=_RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=epochs * batches)
    # Depthwise convolutions train about twice as fast in this layout.
    network.to(memory_format=torch.channels_last).train()
    with tqdm(
        total=epochs * batches, desc=description, unit="batch", disable=not bar, leave=False
    ) as shown:
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=random)
            for chosen in order[: batches * _BATCH].split(_BATCH):
                logits = network(_distort(images[chosen], random))
                loss = functional.cross_entropy(logits, labels[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                shown.update()
    network.to(memory_format=torch.contiguous_format).eval()


def _distort(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image turned, stretched and shifted a little, by amounts of its own."""
    turn, stretch, right, down = (2 * torch.rand(4, len(images), generator=random) - 1).unbind()
    angle, scale = _TURN * turn, 1 + _STRETCH * stretch
    rows = (
        torch.stack((scale * angle.cos(), -scale * angle.sin(), _SHIFT * right), dim=1),
        torch.stack((scale * angle.sin(), scale * angle.cos(), _SHIFT * down), dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The fraction of images whose largest logit is their label."""
    hits = images = 0
    for inputs, labels in batches:
        hits += int((module(inputs).argmax(1) == labels).sum())
        images += len(labels)
    return hits / images


@torch.no_grad()
def agreement(
    before: nn.Module, after: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str
) -> float | None:
    """The fraction of predictions that two models on `device` share; labels are not needed.

    None where the first output is no tensor of scores `[N, classes, ...]`.
    """
    same = predictions = 0
    for inputs, _ in batches:
        scores = [_scores(module(inputs.to(device))) for module in (before, after)]
        if scores[0] is None or scores[1] is None:
            return None
        found = scores[0].argmax(1) == scores[1].argmax(1)
        same += int(found.sum())
        predictions += found.numel()
    return same / predictions


def _scores(output: object) -> Tensor | None:
    first = next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
    return None if first is None or first.dim() < 2 or first.shape[1] < 2 else first
