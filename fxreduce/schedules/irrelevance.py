"""The formulas of EGP and NEPENTHE: how irrelevant a layer is for pruning, and its share.

I_l, the pruning irrelevance of a layer, is its entropy times the mean size of its weights;
R_l = Σ_j I_j / I_l is the larger, the less relevant the layer, and the softmax of R shares out the
weights that go in a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp

import torch
from torch import Tensor


def mean_entropy(entropy: Tensor) -> float:
    """Ĥ: the mean over the channels that are neither always ON nor always OFF; 0 without any.

    Args:
        entropy: of each channel, in bits, [C].
    """
    alive = entropy[entropy > 0]
    return float(alive.mean()) if len(alive) else 0.0


def mean_size(weight: Tensor) -> float:
    """mean |w| over the weights that are not zero; 0 without any."""
    alive = weight.detach().double().abs()
    count = int((alive > 0).sum())
    return float(alive.sum()) / count if count else 0.0


def layer_irrelevance(entropy: Tensor, weight: Tensor) -> float:
    """I = Ĥ · mean |w| over weights that are not zero (EGP).

    Args:
        entropy: of each channel, in bits, [C].
        weight: of the layer, of any shape.
    """
    return mean_entropy(entropy) * mean_size(weight)


def neuron_irrelevance(entropy: Tensor, weight: Tensor, axis: int = 0) -> float:
    """I = mean over neurons i with H_i > 0 of H_i · ‖w_i‖₁ / ‖w_i‖₀; 0 without any (NEPENTHE).

    Args:
        entropy: of each neuron, in bits, [C].
        weight: of the layer, with C neurons along the axis.
    """
    rows = weight.detach().double().movedim(axis, 0).flatten(1).abs()
    sizes = rows.sum(1) / (rows > 0).sum(1).clamp(min=1)
    alive = entropy > 0
    product = (entropy.double() * sizes.to(entropy.device))[alive]
    return float(product.mean()) if len(product) else 0.0


def relevances(irrelevance: Mapping[str, float]) -> dict[str, float]:
    """R_l = Σ_j I_j / I_l, and 0 where I_l = 0."""
    total = sum(irrelevance.values())
    return {name: total / each if each > 0 else 0.0 for name, each in irrelevance.items()}


def shares(
    irrelevance: Mapping[str, float], weights: Mapping[str, int], part: float
) -> dict[str, int]:
    """How many weights of each layer go: n_l = ζ · (weights left) · softmax(R − max R)_l.

    A layer with fewer weights than its share goes whole and leaves the list; what it could not give
    is shared out among the others, by the same R, until all shares fit. Shares are rounded down.

    Args:
        irrelevance: I of each listed layer.
        weights: how many weights of each are not zero.
        part: ζ.
    """
    ranks = relevances(irrelevance)
    budget = part * sum(weights[name] for name in irrelevance)
    found: dict[str, int] = {}
    listed = list(irrelevance)
    while listed:
        largest = max(ranks[name] for name in listed)
        powers = {name: exp(ranks[name] - largest) for name in listed}
        whole = sum(powers.values())
        given = {name: budget * powers[name] / whole for name in listed}
        short = [name for name in listed if weights[name] < given[name]]
        if not short:
            return found | {name: int(given[name]) for name in listed}
        for name in short:
            found[name] = weights[name]
            budget -= weights[name]
            listed.remove(name)
    return found


def is_certain(entropy: Tensor) -> bool:
    """Whether every channel is always in one state."""
    return not bool(torch.count_nonzero(entropy))
