"""How much a ballot weighs: the same for all, or by what was contributed, and never more than a third for one owner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons.ballot_weights import capped, decayed, shares, weights
from commons.charter import Member
from commons.voting import Power
from tests.support.chamber import charter

VECTORS = json.loads((Path(__file__).parents[1] / "support" / "vectors" / "ballot_weights.json").read_text())


def member(name: str, group: str = "") -> Member:
    return Member(name=name, key="x", budget_micro=0, group=group)


@pytest.mark.parametrize("vector", VECTORS["weights"], ids=lambda v: v["name"])
def test_the_golden_weights_hold(vector: dict[str, Any]) -> None:
    members = [member(**m) for m in vector["members"]]
    contributed = [vector["contributed"].get(m.name, 0) for m in members]
    assert capped(members, shares(Power(**vector["power"]), contributed)) == vector["weights"]


@pytest.mark.parametrize("vector", VECTORS["decayed"])
def test_a_contribution_halves_with_each_half_life_and_falls_in_a_straight_line_between(
    vector: dict[str, int],
) -> None:
    expected = vector.pop("expected")
    assert decayed(**vector) == expected


MEMBERS = st.lists(st.tuples(st.sampled_from("uvwxyz"), st.integers(0, 2**63 - 1)), min_size=1, max_size=40)


@given(MEMBERS, st.sampled_from(("linear", "sqrt")))
def test_no_group_of_affiliates_has_more_than_a_third_and_everybody_has_something(
    drawn: list[tuple[str, int]], curve: Any
) -> None:
    members = [member(f"m{n}", group) for n, (group, _) in enumerate(drawn)]
    found = capped(members, shares(Power(base="contribution", curve=curve), [c for _, c in drawn]))
    assert list(found) == [m.name for m in members] and min(found.values()) >= 1
    sums = {g: sum(found[m.name] for m in members if m.group == g) for g, _ in drawn}
    if len(sums) >= 3:
        assert all(3 * weight <= sum(sums.values()) for weight in sums.values())
    else:
        assert len(set(sums.values())) == 1
    assert sum(found.values()) < 2**53


@given(st.integers(2, 12), st.integers(2, 30))
def test_affiliates_splitting_to_beat_the_cap_gain_nothing(others: int, parts: int) -> None:
    rest = [member(f"o{n}") for n in range(others)]
    split = [member(f"s{n}", "s") for n in range(parts)]
    found = capped([*split, *rest], [1000] * (parts + others))
    theirs = sum(found[m.name] for m in split)
    assert theirs * 3 <= sum(found.values())


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=20))
def test_what_is_above_the_cap_is_cut_off_and_the_others_keep_theirs(raw: list[int]) -> None:
    members = [member(f"m{n}") for n in range(len(raw))]
    found = list(capped(members, raw).values())
    kept = [(r, w) for r, w in zip(raw, found, strict=True) if w * 3 < sum(found)]
    assert len({r * kept[0][1] == w * kept[0][0] for r, w in kept}) <= 1
    order = sorted(range(len(raw)), key=lambda at: raw[at])
    assert [found[at] for at in order] == sorted(found)


def test_the_suspended_and_the_one_concerned_have_no_weight() -> None:
    members = tuple({**m.model_dump(), "suspended": m.name == "beta"} for m in charter().members)
    of = charter(members=members)
    assert weights(of, {}) == {"acme": 1, "coop": 1}
    assert weights(of, {}, without=["coop"]) == {"acme": 1}
    assert weights(of, {}, without=["coop", "acme"]) == {}
