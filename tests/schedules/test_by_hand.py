"""What the methods decide of one network whose entropies can be worked out by hand.

Samples -2, 0 and 1, 2 are two mini-batches. act1 reads (x, 5, -5): a channel that decides, one that
is always ON, one that is always OFF. act2 reads (relu(x), 0): nothing is ever OFF, the second
channel is always 0. act3 reads relu(x) + 1: always ON.
"""

from __future__ import annotations

from math import log2

import pytest
import torch
from torch import Tensor, nn

from fxreduce import schedules
from fxreduce.schedules.easier import Easier
from fxreduce.schedules.egp import Egp, Nepenthe
from tests.networks import Wiring
from tests.schedules.scheduling import never, stage_of

BATCHES = [torch.tensor([[-2.0], [0.0]]).double(), torch.tensor([[1.0], [2.0]]).double()]
# Of these EGP's code says that x and relu(x) are ON 1 of 2 times, then always.
WITH_ZERO = [torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1.0], [2.0]]).double()]
# Of x: paper, 0 left out: ON 2 of 3. Code: of each mini-batch, 0 is ON: 1/2 and 1, or OFF: 0 and 1.
PAPER = -(2 / 3) * log2(2 / 3) - (1 / 3) * log2(1 / 3)
EASIER_CODE = (1 + 0) / 2
EGP_CODE = 0.0


def network() -> nn.Module:
    model = Wiring(
        lambda net, x: net.act3(net.three(net.act2(net.two(net.act1(net.one(x)))))),
        one=nn.Linear(1, 3),
        act1=nn.ReLU(),
        two=nn.Linear(3, 2),
        act2=nn.ReLU(),
        three=nn.Linear(2, 1),
        act3=nn.ReLU(),
    ).double()
    with torch.no_grad():
        for layer, weight, bias in (
            (model.one, [[1.0], [0.0], [0.0]], [0.0, 5.0, -5.0]),
            (model.two, [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [0.0, 0.0]),
            (model.three, [[1.0, 0.0]], [1.0]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return model.eval()


def constants(site: str, rule: Egp, batches: list[Tensor] = BATCHES) -> tuple[list[float], ...]:
    """Scale and shift of what takes the place of a site."""
    stage = stage_of(network(), batches)
    found = rule.act(stage, rule.score(stage)).remove[site]
    assert found is not None
    return found.scale.tolist(), found.shift.tolist()


@pytest.mark.parametrize(("variant", "entropy"), [("paper", PAPER), ("code", EASIER_CODE)])
def test_easier_averages_over_channels_of_which_certain_ones_have_no_entropy(
    variant: str, entropy: float
) -> None:
    scores = Easier(variant).score(stage_of(network(), BATCHES))
    assert scores == pytest.approx({"act1": entropy / 3, "act2": 0, "act3": 0}, abs=1e-15)


@pytest.mark.parametrize(
    ("variant", "rounds"),
    [("paper", [("act2",), ("act3",), ("act1",)]), ("code", [("act2", "act3"), ("act1",)])],
)
def test_sites_that_reach_zero_at_once_go_together_by_the_code_of_easier(
    variant: str, rounds: list[tuple[str, ...]]
) -> None:
    result = schedules.easier(
        network(), BATCHES, train=never, evaluate=lambda module: 1.0, variant=variant,
        progress=False,
    )  # fmt: skip
    assert [each.removed for each in result.rounds[1:]] == rounds


@pytest.mark.parametrize(
    ("rule", "batches", "scores"),
    [
        (Egp("paper"), BATCHES, (PAPER, 0, 0)),
        (Egp("code"), BATCHES, (EGP_CODE, 0, 0)),
        (Egp("code"), WITH_ZERO, ((1 + 0) / 2, (1 + 0) / 2, 0)),
        (Egp("paper"), WITH_ZERO, (0, 0, 0)),
        (Nepenthe("paper", irrelevance="neuron"), BATCHES, (PAPER, 0, 0)),
        (Nepenthe("code", irrelevance="neuron"), WITH_ZERO, ((1 + 0) / 2, (1 + 0) / 2, 0)),
    ],
)
def test_pruning_looks_at_the_channels_and_weights_that_are_alive(
    rule: Egp, batches: list[Tensor], scores: tuple[float, ...]
) -> None:
    # All weights that are not zero are 1, so that a score is the entropy of the one channel.
    found = rule.score(stage_of(network(), batches))
    assert list(found) == ["act1", "act2", "act3"]
    assert tuple(found.values()) == pytest.approx(scores, abs=1e-15)


def test_a_layer_that_is_smaller_than_its_share_goes_whole_and_so_does_its_site() -> None:
    stage = stage_of(network(), BATCHES)
    rule = Egp(part=1.0)
    action = rule.act(stage, rule.score(stage))
    # R = (1, 0, 0): softmax (0.576, 0.212, 0.212) of 3 weights. The first has 1 to give, not 1.73;
    # the other two share what is left, 2.
    assert {path: int((mask == 0).sum()) for path, mask in action.masks.items()} == {
        "one": 3, "two": 6, "three": 2,
    }  # fmt: skip
    assert "pruned 3 of 3 weights" in action.why
    assert set(action.remove) == {"act1", "act2", "act3"}


def test_the_code_of_egp_gives_the_whole_share_to_the_layers_that_decide() -> None:
    stage = stage_of(network(), WITH_ZERO)
    rule = Egp("code", part=1.0)
    action = rule.act(stage, rule.score(stage))
    # R = (2, 2) of the two that are listed: 1 weight each.
    assert list(action.masks) == ["one", "two"]
    assert "pruned 2 of 2 weights" in action.why


def test_channels_that_are_always_on_become_the_identity_and_those_always_off_a_zero() -> None:
    small = Egp(part=0.1)  # of which no layer gets a whole weight
    assert constants("act2", small) == ([1, 0], [0, 0])
    assert constants("act3", small) == ([1], [0])
    # By the code x is always OFF in the first mini-batch and always ON in the second.
    assert constants("act1", Egp("code", part=0.1))[0][1:] == [0, 0]
