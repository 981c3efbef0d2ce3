"""The cover of a region is the cheapest that any order of merges could make."""

from __future__ import annotations

import pytest
import torch
from covers import cheapest_by_trial, conv, cost_of, leaf, regions
from hypothesis import given, settings

from fxreduce.operators.affine import ScaleShift
from fxreduce.operators.cost import FlopsCost
from fxreduce.operators.regions import Parallel, Region, Series, cheapest_cover, leaves, series
from fxreduce.operators.setting import Setting

COST = FlopsCost()


@settings(max_examples=max(settings().max_examples - 1000, 60))
@given(regions())
def test_no_order_of_merges_finds_a_cheaper_cover(drawn: tuple[Region, Setting]) -> None:
    region, setting = drawn
    least = cheapest_by_trial(region, setting, COST)
    assert cheapest_cover(region, setting, COST).cost == pytest.approx(least, rel=1e-9)


def bottleneck(beside: Region) -> Parallel:
    """A branch through four channels, which alone is dearer as one operator."""
    narrow = series(conv(4, 64, 1, bias=False), conv(64, 4, 3, padding=1, bias=False))
    return Parallel(narrow, beside, "+")


def test_a_branch_that_is_dearer_as_one_operator_merges_into_the_branch_beside_it() -> None:
    region, setting = bottleneck(conv(64, 64, 3, padding=1)), Setting((1, 64, 8, 8))
    cover = cheapest_cover(region, setting, COST)
    assert cover.merged == (region,)
    assert cover.cost < cost_of(region, setting, COST)
    alone = cheapest_cover(region.left, setting, COST)
    assert alone.merged == ()


def test_it_stays_apart_where_nothing_takes_it_up() -> None:
    cover = cheapest_cover(bottleneck(Series()), Setting((1, 64, 8, 8)), COST)
    assert cover.merged == ()


def test_what_may_not_become_one_operator_is_covered_otherwise() -> None:
    point = conv(64, 64, 1, bias=False)
    region, setting = series(point, conv(64, 64, 1), conv(64, 64, 1)), Setting((1, 64, 8, 8))
    assert isinstance(region, Series)
    whole = cheapest_cover(region, setting, COST)
    assert [len(list(leaves(part))) for part in whole.merged] == [3]
    cover = cheapest_cover(region, setting, COST, able=lambda part: len(list(leaves(part))) < 3)
    assert [len(list(leaves(part))) for part in cover.merged] == [2]


def test_all_candidates_are_rated_in_one_comparison() -> None:
    class Comparing:
        name, calls = "comparing", 0

        def cost(self, operator: object, setting: Setting) -> float:
            raise AssertionError("rated alone")

        def costs(self, candidates: list[tuple[object, Setting]]) -> list[float]:
            self.calls += 1
            return [1.0] * len(candidates)

    model = Comparing()
    cover = cheapest_cover(bottleneck(conv(64, 64, 3, padding=1)), Setting((1, 64, 8, 8)), model)
    assert (model.calls, cover.cost, len(cover.merged)) == (1, 1.0, 1)


def test_of_covers_that_cost_the_same_the_one_that_merges_in_front_is_taken() -> None:
    """A scale goes into what is in front of it, where the region behind carries a border anyway."""
    scale = leaf(ScaleShift(torch.empty(16, device="meta"), torch.empty(16, device="meta"), 2))
    padded = conv(16, 64, 3, groups=1, padding=1)
    block = Parallel(series(conv(64, 16, 1), padded), Series(), "+")
    region = series(conv(16, 96, 1), scale, block)
    front, behind = cheapest_cover(region, Setting((1, 96, 16, 16)), COST).merged
    assert [len(list(leaves(part))) for part in (front, behind)] == [2, 2]
