"""Taking some of a call's arguments."""

from __future__ import annotations

import pytest

from fxreduce.dynamo.variants import take


@pytest.mark.parametrize(
    "places", [[], [0], [3], [0, 1, 2], [0, 2, 3], [1, 2, 5, 6, 7], [0, 2, 4], [5, 1, 2], [2, 1]]
)
def test_the_values_at_the_places_are_taken_in_their_order(places: list[int]) -> None:
    values = [str(place) for place in range(9)]
    expected = tuple(values[place] for place in places)
    assert take(places)(values) == take(places)(tuple(values)) == expected
