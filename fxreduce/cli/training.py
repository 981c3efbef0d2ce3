"""Training of a small classifier from scratch, and the figures that judge classifiers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxreduce.cli.errors import missing_extra

_BATCH = 64
_RATE = 0.1
_SHIFT = 1 / 8  # of the image's side; digits are not mirrored or turned, as that changes them


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

    SGD with Nesterov momentum and one cosine cycle of the learning rate; each batch is shifted by
    up to an eighth of the side. `seed` fixes the order of the images and the shifts.

    Raises:
        UnsupportedError: tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise missing_extra("tqdm", "training", "demo") from None
    random = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(labels) // _BATCH)
    # Only weights decay: a decaying shift of a batch-norm would centre what rectifiers are given.
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=_RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    # Depthwise convolutions train about twice as fast in this layout.
    network.to(memory_format=torch.channels_last).train()
    with tqdm(total=steps, desc=description, unit="batch", disable=not bar, leave=False) as shown:
        for _ in range(epochs):
            for chosen in torch.randperm(len(labels), generator=random).split(_BATCH):
                shifted = _shift(images[chosen], random)
                loss = functional.cross_entropy(network(shifted), labels[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                shown.update()
    network.to(memory_format=torch.contiguous_format).eval()


def _shift(images: Tensor, random: torch.Generator) -> Tensor:
    """The batch moved by one random offset, with what enters at the edges as dark as the corner."""
    height, width = images.shape[-2:]
    reach = max(1, round(_SHIFT * width))
    top, left = torch.randint(2 * reach + 1, (2,), generator=random).tolist()
    padded = functional.pad(images, (reach,) * 4, value=images.min().item())
    moved = padded[..., top : top + height, left : left + width]
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
    before: nn.Module, after: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> float | None:
    """The fraction of predictions that two models share; labels are not needed.

    None where the first output is no tensor of scores `[N, classes, ...]`.
    """
    device = next(before.parameters()).device
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
