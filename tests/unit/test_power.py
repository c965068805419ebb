"""Voting power from worth: what everybody counts alike, and what no vote may break."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commons.power import POINTS, power

VECTORS = json.loads((Path(__file__).parents[1] / "support" / "vectors" / "power.json").read_text())
WORTH = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-(10**9), 10**12), min_size=1, max_size=8)
PERCENT = st.integers(0, 100)
untimed = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["what"])
def test_the_golden_vectors(vector: dict[str, object]) -> None:
    worth, rules = vector["worth"], vector["rules"]
    assert power(worth, **rules) == vector["power"]  # type: ignore[arg-type]


@untimed
@given(WORTH, PERCENT, PERCENT)
def test_all_points_are_given_everybody_has_one_and_nobody_is_above_the_cap(
    worth: dict[str, int], equal: int, cap: int
) -> None:
    found = power(worth, equal_percent=equal, cap_percent=cap)
    assert found.keys() == worth.keys() and sum(found.values()) == POINTS and min(found.values()) >= 1
    assert max(found.values()) <= max(POINTS * cap // 100, -(-POINTS // len(worth)))


@untimed
@given(WORTH, PERCENT, PERCENT)
def test_who_is_worth_more_has_no_less(worth: dict[str, int], equal: int, cap: int) -> None:
    found = power(worth, equal_percent=equal, cap_percent=cap)
    for one, other in permutations(worth, 2):
        if worth[one] > worth[other]:
            assert found[one] >= found[other] - len(worth), "but for ends of divisions"


def test_percentages_and_members_out_of_bounds_are_an_error() -> None:
    for wrong in ({"equal_percent": 101, "cap_percent": 50}, {"equal_percent": 0, "cap_percent": -1}):
        with pytest.raises(ValueError, match="from 0 to 100"):
            power({"a": 1}, **wrong)
    with pytest.raises(ValueError, match="members"):
        power({}, equal_percent=0, cap_percent=100)
