"""What EASIER, TLC and Layer Folding choose, against hand-made scores and losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from fxreduce.errors import FxReduceError
from fxreduce.graph.rectifiers import find_sites
from fxreduce.schedules.easier import Easier
from fxreduce.schedules.layer_folding import FoldedRectifier, LayerFolding
from fxreduce.schedules.tlc import Tlc, collapsed, kept_channels
from tests.models import stored_entropies
from tests.networks import Wiring
from tests.schedules.scheduling import SITES, Task, mixed, stage_of


def test_easier_scores_sites_by_their_entropy() -> None:
    task, model = Task(), mixed()
    scores = Easier().score(stage_of(model, task.loader))
    expected = stored_entropies(model, task.loader)
    assert scores == pytest.approx(expected, abs=1e-7)  # its log 2 is float32


def test_easier_removes_the_lowest_site() -> None:
    stage = stage_of(mixed(), Task().loader)
    action = Easier().act(stage, {"relu": 0.4, "relu#1": 0.1, "clip": 0.2})
    assert dict(action.remove) == {"relu#1": None}


def test_of_equal_entropies_the_first_in_order_of_execution_goes() -> None:
    stage = stage_of(mixed(), Task().loader)
    assert list(Easier().act(stage, {"relu": 0.1, "relu#1": 0.1}).remove) == ["relu"]


def test_easier_removes_several_sites_a_round_if_it_is_told_to() -> None:
    stage = stage_of(mixed(), Task().loader)
    action = Easier(moves=2).act(stage, {"relu": 0.4, "relu#1": 0.1, "clip": 0.2})
    assert list(action.remove) == ["relu#1", "clip"]


@pytest.mark.parametrize(("variant", "removed"), [("paper", ["relu"]), ("code", ["relu", "clip"])])
def test_the_code_of_easier_removes_all_sites_at_zero_at_once(
    variant: str, removed: list[str]
) -> None:
    stage = stage_of(mixed(), Task().loader)
    action = Easier(variant).act(stage, {"relu": 0.0, "relu#1": 0.1, "clip": 0.0})
    assert list(action.remove) == removed


def losses(table: dict[frozenset[str], float]) -> Callable[[nn.Module], float]:
    """A loss by the sites that a module still has."""

    def loss(module: nn.Module) -> float:
        assert isinstance(module, GraphModule)
        return table[frozenset(SITES) - {site.name for site in find_sites(module)}]

    return loss


def gone(*names: str) -> frozenset[str]:
    return frozenset(names)


SINGLE = {
    gone(): 1.0,
    gone("relu"): 0.7,
    gone("relu#1"): 0.9,
    gone("relu#2"): 0.95,
    gone("clip"): 1.5,
    gone("gelu"): 2.0,
}


def test_tlc_scores_sites_by_the_gap_of_the_loss() -> None:
    rule = Tlc(loss=losses(SINGLE))
    expected = {"relu": -0.3, "relu#1": -0.1, "relu#2": -0.05, "clip": 0.5, "gelu": 1.0}
    assert rule.score(stage_of(mixed(), Task().loader)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("variant", "removed"), [("paper", ["relu", "relu#1"]), ("code", ["relu", "relu#1", "relu#2"])]
)
def test_tlc_removes_sites_together_until_the_loss_exceeds_what_it_was(
    variant: str, removed: list[str]
) -> None:
    table = SINGLE | {gone("relu", "relu#1"): 1.0, gone("relu", "relu#1", "relu#2"): 1.01}
    rule = Tlc(variant, loss=losses(table))
    stage = stage_of(mixed(), Task().loader)
    assert list(rule.act(stage, rule.score(stage)).remove) == removed


def test_tlc_removes_all_sites_where_no_loss_exceeds() -> None:
    rule = Tlc(loss=lambda module: float(len(find_sites(module))))  # type: ignore[arg-type]
    stage = stage_of(mixed(), Task().loader)
    assert set(rule.act(stage, rule.score(stage)).remove) == set(SITES)


def test_tlc_removes_only_the_smallest_gap_where_none_is_negative() -> None:
    table = {sites: 1.0 + len(sites) * loss for sites, loss in SINGLE.items()}
    rule = Tlc(loss=losses(table))
    stage = stage_of(mixed(), Task().loader)
    assert list(rule.act(stage, rule.score(stage)).remove) == ["relu"]


def test_tlc_ranks_by_the_loss_of_the_accuracy_where_it_is_given_none() -> None:
    stage = stage_of(mixed(), Task().loader, evaluate=lambda m: float(len(find_sites(m))))
    assert Tlc().score(stage) == dict.fromkeys(SITES, 1.0)


def test_tlc_keeps_channels_of_positive_mean_and_removes_the_others() -> None:
    found = kept_channels(torch.tensor([0.3, 0.0, -2.0]), 2)
    assert found.scale.tolist() == [1, 0, 0]
    assert found.shift.tolist() == [0, 0, 0]


def test_tlc_reads_the_batch_norm_and_measures_where_there_is_none() -> None:
    model = Wiring(
        lambda net, x: net.second(net.mix(net.first(net.norm(x)))),
        norm=nn.BatchNorm2d(2),
        first=nn.ReLU(),
        mix=nn.Conv2d(2, 2, 1),
        second=nn.ReLU6(),
    ).double()
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([1.0, -1.0]))
        model.mix.weight.zero_()
        model.mix.bias.copy_(torch.tensor([-3.0, 2.0]))
    # The data say otherwise than the batch-norm: it is the batch-norm that counts.
    x = torch.tensor([-5.0, 5.0]).double().view(1, 2, 1, 1).expand(2, 2, 3, 3)
    maps = collapsed(stage_of(model.eval(), [x]))
    assert maps["first"].scale.tolist() == [1, 0]
    assert maps["second"].scale.tolist() == [0, 1]


def test_the_masks_of_tlc_are_not_trained() -> None:
    stage = stage_of(mixed(), Task().loader)
    rule = Tlc(loss=losses(SINGLE | {gone("relu", "relu#1"): 9.0}))
    action = rule.act(stage, rule.score(stage))
    stage.network.remove(action.remove, frozen=action.frozen)
    (path,) = stage.network.map_paths
    mask = stage.network.module.get_submodule(path)
    assert [each.requires_grad for each in mask.parameters()] == [False, False]


def test_tlc_ranks_by_the_error_of_the_forced_state_if_it_is_told_to() -> None:
    scores = Tlc(ranking="error").score(stage_of(mixed(), Task().loader))
    # Fresh batch-norms have mean 0 and deviation 1: each state is wrong half of the time.
    assert scores["relu"] == scores["relu#1"] == 0.5
    assert 0 < scores["relu#2"] < 0.5


def test_a_folded_rectifier_mixes_its_input_and_the_rectified_one() -> None:
    folded = FoldedRectifier(torch.relu, 0.25, torch.zeros(()))
    z = torch.tensor([-2.0, 4.0])
    assert folded(z).tolist() == [0, 4]
    folded.slope.data.fill_(0.25)
    assert folded(z).tolist() == [-0.5, 4]
    folded.slope.data.fill_(1.0)
    assert folded(z).tolist() == [-2, 4]


@pytest.mark.parametrize(
    ("slope", "expected"), [(0.0, 0.25), (0.5, 0.25 * 0.75), (1.0, 0.0), (2.0, 0.0), (-1.0, 0.5)]
)
def test_the_pull_of_a_slope_ends_at_one(slope: float, expected: float) -> None:
    folded = FoldedRectifier(torch.relu, 0.25, torch.zeros(()))
    folded.slope.data.fill_(slope)
    assert float(folded.auxiliary_loss().detach()) == expected


SLOPES = {"relu": 0.95, "relu#1": 0.2, "relu#2": 0.9, "clip": 1.1, "gelu": 0.3}


def with_slopes(module: nn.Module) -> None:
    """A training that finds these slopes."""
    for name, part in module.named_modules():
        if isinstance(part, FoldedRectifier):
            part.slope.data.fill_(SLOPES[name.removesuffix("_folded").replace("_", "#")])


def test_layer_folding_scores_sites_by_their_slopes() -> None:
    stage = stage_of(mixed(), Task().loader, train=with_slopes)
    expected = {name: 1 - slope for name, slope in SLOPES.items()}
    assert LayerFolding().score(stage) == pytest.approx(expected)


def test_layer_folding_folds_from_the_threshold_on() -> None:
    stage = stage_of(mixed(), Task().loader, train=with_slopes)
    rule = LayerFolding()
    assert list(rule.act(stage, rule.score(stage)).remove) == ["clip", "relu", "relu#2"]


def test_the_comparison_of_easier_folds_the_steepest_slopes() -> None:
    stage = stage_of(mixed(), Task().loader, train=with_slopes)
    rule = LayerFolding("code", moves=2)
    assert list(rule.act(stage, rule.score(stage)).remove) == ["clip", "relu"]


def test_with_slopes_of_zero_a_network_computes_what_it_did() -> None:
    task, model = Task(), mixed()
    stage = stage_of(model, task.loader)
    module, folded = LayerFolding().parametrised(stage.graph_module, stage.sites)
    assert list(folded) == list(SITES)
    with torch.no_grad():
        assert torch.equal(module(task.images), model(task.images))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Easier("papers"),
        lambda: Easier(moves=0),
        lambda: Tlc(ranking="gaps"),
        lambda: LayerFolding(pull=-1.0),
        lambda: LayerFolding(variant="published"),
    ],
)
def test_settings_that_do_not_exist_are_errors(make: Callable[[], object]) -> None:
    with pytest.raises(FxReduceError, match="seen: "):
        make()
