"""The formulas of EGP and NEPENTHE against values worked out by hand."""

from __future__ import annotations

from math import exp

import pytest
import torch
from torch import Tensor, nn

from fxreduce.schedules.egp import Egp, Nepenthe
from fxreduce.schedules.irrelevance import (
    layer_irrelevance,
    mean_entropy,
    mean_size,
    neuron_irrelevance,
    relevances,
    shares,
)
from fxreduce.schedules.pruning import smallest
from tests.networks import Wiring
from tests.schedules.scheduling import stage_of


def test_the_entropy_of_a_layer_is_the_mean_over_channels_that_are_not_certain() -> None:
    assert mean_entropy(torch.tensor([0.0, 0.5, 1.0])) == 0.75


def test_the_entropy_of_a_layer_whose_channels_are_all_certain_is_zero() -> None:
    assert mean_entropy(torch.zeros(3)) == 0


def test_the_size_of_weights_is_the_mean_over_those_that_are_not_zero() -> None:
    assert mean_size(torch.tensor([[0.0, 1.0], [-3.0, 0.0]])) == 2
    assert mean_size(torch.zeros(2, 2)) == 0


def test_the_irrelevance_of_a_layer_is_the_product_of_both() -> None:
    weight = torch.tensor([[0.0, 1.0], [-3.0, 0.0]])
    assert layer_irrelevance(torch.tensor([0.0, 0.5, 1.0]), weight) == 1.5
    assert layer_irrelevance(torch.ones(3), torch.zeros(2, 2)) == 0


def test_the_irrelevance_of_neurons_is_the_mean_of_their_own_products() -> None:
    entropy = torch.tensor([1.0, 0.0, 0.5])
    rows = torch.tensor([[1.0, -1.0], [5.0, 5.0], [0.0, 4.0]])  # sizes 1, 5, 4
    assert neuron_irrelevance(entropy, rows) == (1 * 1 + 0.5 * 4) / 2
    assert neuron_irrelevance(entropy, rows.T, axis=1) == (1 * 1 + 0.5 * 4) / 2
    assert neuron_irrelevance(torch.zeros(3), rows) == 0
    assert neuron_irrelevance(entropy, torch.zeros(3, 2)) == 0


def test_relevance_is_the_sum_of_all_irrelevances_over_a_layers_own() -> None:
    assert relevances({"a": 1.0, "b": 3.0, "c": 0.0}) == {"a": 4.0, "b": 4 / 3, "c": 0.0}


def test_shares_are_the_softmax_of_the_relevances() -> None:
    # R = 4 and 4/3: softmax = 1/(1 + e^(-8/3)) = 0.93503 of the half of 200 weights.
    first = 1 / (1 + exp(-8 / 3))
    found = shares({"a": 1.0, "b": 3.0}, {"a": 100, "b": 100}, 0.5)
    assert found == {"a": int(100 * first), "b": int(100 * (1 - first))} == {"a": 93, "b": 6}


def test_a_layer_smaller_than_its_share_goes_whole_and_the_rest_goes_to_the_others() -> None:
    assert shares({"a": 1.0, "b": 3.0}, {"a": 10, "b": 190}, 0.5) == {"a": 10, "b": 90}


def test_redistribution_goes_on_until_all_shares_fit() -> None:
    # a and then b are too small for what they are to give; c gives the rest.
    found = shares({"a": 1.0, "b": 1.1, "c": 9.0}, {"a": 5, "b": 50, "c": 945}, 0.5)
    assert found == {"a": 5, "b": 50, "c": 445}


def test_all_weights_go_where_the_part_is_one() -> None:
    assert shares({"a": 1.0, "b": 3.0}, {"a": 10, "b": 190}, 1.0) == {"a": 10, "b": 190}


def test_layers_without_irrelevance_share_alike() -> None:
    assert shares({"a": 0.0, "b": 0.0}, {"a": 10, "b": 10}, 0.5) == {"a": 5, "b": 5}


def test_an_empty_list_has_no_shares() -> None:
    assert shares({}, {}, 0.5) == {}


def test_enormous_relevances_do_not_overflow() -> None:
    assert shares({"a": 1e-300, "b": 1.0}, {"a": 10, "b": 10}, 0.5) == {"a": 10, "b": 0}


def test_the_smallest_weights_go_and_zeros_do_not_count() -> None:
    weight = torch.tensor([3.0, -1.0, 0.0, 2.0, -0.5])
    assert smallest(weight, 2).tolist() == [1, 0, 0, 1, 0]
    assert smallest(weight, 0).tolist() == [1, 1, 0, 1, 1]
    assert smallest(weight, 9).tolist() == [0, 0, 0, 0, 0]


def test_of_equal_weights_the_first_go() -> None:
    assert smallest(torch.ones(2, 2), 3).tolist() == [[0, 0], [0, 1]]


def two_layers() -> tuple[nn.Module, Tensor]:
    """Linear layers whose first channels are ON for 2 of 4 samples, second channels always."""
    model = Wiring(
        lambda net, x: net.act2(net.two(net.act1(net.one(x)))),
        one=nn.Linear(1, 2),
        act1=nn.ReLU(),
        two=nn.Linear(2, 2, bias=False),
        act2=nn.ReLU(),
    ).double()
    with torch.no_grad():
        model.one.weight.copy_(torch.tensor([[1.0], [0.5]]))
        model.one.bias.copy_(torch.tensor([0.0, 9.0]))
        model.two.weight.copy_(torch.tensor([[-1.0, 0.0], [0.0, 4.0]]))
    return model.eval(), torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)


def test_egp_scores_layers_by_entropy_and_weights() -> None:
    model, x = two_layers()
    # act1: entropies 1 and 0, mean |w| 0.75. act2: z = (-relu(x), 4(x/2 + 9)): the first channel is
    # never ON, the second always, so that it decides nothing.
    assert Egp().score(stage_of(model, [x])) == {"act1": 0.75, "act2": 0.0}


def test_egp_prunes_the_smallest_weights_and_linearises_what_decides_nothing() -> None:
    model, x = two_layers()
    stage = stage_of(model, [x])
    rule = Egp()
    action = rule.act(stage, rule.score(stage))
    # R = (1, 0): softmax 0.731 and 0.269 of the half of 4 weights, rounded down: 1 and 0.
    assert {path: mask.tolist() for path, mask in action.masks.items()} == {"one": [[1], [0]]}
    act2 = action.remove["act2"]
    assert act2 is not None
    assert list(action.remove) == ["act2"]
    # The smaller weight of "one" is gone: what act2 sees is -relu(x) and 36.
    assert act2.scale.tolist() == [0, 0]
    assert act2.shift.tolist() == [0, 36]


def test_the_code_of_egp_leaves_layers_without_entropy_out_of_the_list() -> None:
    model, x = two_layers()
    stage = stage_of(model, [x])
    paper, code = Egp(part=1.0), Egp("code", part=1.0)
    assert set(paper.act(stage, paper.score(stage)).masks) == {"one", "two"}
    assert set(code.act(stage, code.score(stage)).masks) == {"one"}


def test_the_code_of_egp_averages_mini_batches_and_counts_zero_as_off() -> None:
    model, _ = two_layers()
    with torch.no_grad():
        model.one.bias.zero_()
    # Two mini-batches of z = (x, x/2): ON 1 of 2 (zero is OFF), then 2 of 2: entropies 1 and 0.
    batches = [torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1.0], [2.0]]).double()]
    assert Egp("code").score(stage_of(model, batches))["act1"] == 0.5 * 0.75
    # The paper pools and leaves zero out: always ON.
    assert Egp("paper").score(stage_of(model, batches))["act1"] == 0


def test_nepenthe_scores_neurons_one_by_one() -> None:
    model, x = two_layers()
    rule = Nepenthe(irrelevance="neuron")
    assert rule.score(stage_of(model, [x]))["act1"] == 1.0  # only the first neuron: H = 1, w = 1


def test_a_shared_layer_is_listed_once_with_the_channels_of_all_its_sites() -> None:
    model = Wiring(
        lambda net, x: net.act(net.mix(net.act(net.mix(x)))), mix=nn.Linear(1, 1), act=nn.ReLU()
    ).double()
    with torch.no_grad():
        model.mix.weight.fill_(1.0)
        model.mix.bias.fill_(-1.0)
    x = torch.tensor([[0.0], [2.0], [4.0], [6.0]], dtype=torch.float64)
    # act sees x - 1: ON for 3 of 4; act#1 sees (0, 1, 3, 5) - 1: -1, 0, 2, 4, ON for 2 of 3.
    stage = stage_of(model.eval(), [x])
    h = [float(site.entropy) for site in stage.measure().values()]
    scores = Egp().score(stage)
    assert scores["act"] == scores["act#1"] == pytest.approx((h[0] + h[1]) / 2, abs=1e-15)
    action = Egp(part=1.0).act(stage, scores)
    assert list(action.masks) == ["mix"]
