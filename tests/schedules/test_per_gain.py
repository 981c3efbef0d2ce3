from __future__ import annotations

import torch
from torch import nn

import fxreduce
from fxreduce import schedules
from fxreduce.schedules.rule import Scores, Stage
from tests.networks import Wiring
from tests.schedules.scheduling import never, stage_of

IMAGES = torch.randn(4, 3, 17, 17)


def block() -> nn.Module:
    """A stem, then an inverted-residual block of which half merged saves little."""
    return Wiring(
        lambda net, x: net.project(
            net.act2(net.depthwise(net.act1(net.expand(net.act0(net.stem(x))))))
        ),
        stem=nn.Conv2d(3, 16, 3, stride=2),
        act0=nn.ReLU(),
        expand=nn.Conv2d(16, 96, 1, bias=False),
        act1=nn.ReLU6(),
        depthwise=nn.Conv2d(96, 96, 3, groups=96),
        act2=nn.ReLU6(),
        project=nn.Conv2d(96, 16, 1),
    ).eval()


class Given(schedules.Rule):
    """Scores as they are given."""

    name = "given"

    def __init__(self, scores: dict[str, float], moves: int = 1) -> None:
        self.scores = scores
        self.moves = moves

    def score(self, stage: Stage) -> Scores:
        return {name: self.scores[name] for name in stage.sites}


def chosen(scores: dict[str, float], moves: int = 1) -> list[str]:
    stage = stage_of(block(), [IMAGES])
    rule = schedules.PerGain(Given(scores, moves))
    return list(rule.act(stage, rule.score(stage)).remove)


def test_a_whole_block_goes_where_half_of_it_buys_little() -> None:
    # Both save 3.6 times what the first saves alone.
    assert chosen({"act0": 1.0, "act1": 0.1, "act2": 0.2}) == ["act1", "act2"]


def test_a_block_that_decides_far_more_stays() -> None:
    assert "act2" not in chosen({"act0": 0.01, "act1": 0.02, "act2": 1e9})


def test_sets_go_until_as_many_sites_have_gone_as_the_rule_says() -> None:
    scores = {"act0": 1.0, "act1": 0.1, "act2": 0.2}
    assert chosen(scores, moves=2) == ["act1", "act2"]
    assert chosen(scores, moves=3) == ["act1", "act2", "act0"]
    assert chosen(scores, moves=9) == ["act1", "act2", "act0"]


def test_easier_takes_the_block_by_gain_and_the_lowest_entropy_without() -> None:
    removed = {}
    for per_gain in (False, True):
        result = schedules.easier(
            block(), [IMAGES], train=never, evaluate=lambda module: 1.0, rounds=1,
            per_gain=per_gain, progress=False,
        )  # fmt: skip
        removed[per_gain] = set(result.removed)
        entropies = result.rounds[1].scores
    assert removed == {False: {min(entropies, key=entropies.__getitem__)}, True: {"act1", "act2"}}


def test_where_nothing_is_saved_the_lowest_score_goes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Softmax(1), nn.ReLU()).eval()
    stage = stage_of(model, [torch.randn(4, 4)])
    rule = schedules.PerGain(Given({"1": 0.5, "4": 0.2}))
    assert list(rule.act(stage, rule.score(stage)).remove) == ["4"]


def test_a_schedule_by_gain_is_cheaper_after_as_many_removals() -> None:
    scores = {"act0": 0.2, "act1": 0.3, "act2": 0.4}
    macs = {}
    for rule in (Given(scores), schedules.PerGain(Given(scores))):
        result = schedules.run(
            block(),
            [IMAGES],
            rule,
            train=never,
            evaluate=lambda module: 1.0,
            budget=2,
            progress=False,
        )
        assert len(result.removed) == 2
        macs[rule.name] = fxreduce.report(result.merged()).macs_after
    assert macs["per gain"] < macs["given"]
