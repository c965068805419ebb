"""One opening and its ballots give one outcome, in every language that counts them."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commons import notes
from commons.ballots import CHOICES, Ballot, Choice
from commons.charter import Charter
from commons.motions import Motion
from commons.notes import Signer
from commons.opening import Opening
from commons.tally import tally
from tests.support.chamber import ballot, charter, proposal

VECTORS = json.loads((Path(__file__).parents[1] / "support" / "vectors" / "tally.json").read_text())
ANYBODY = Signer("anybody", b"\x01" * 32)
MEMBERS = ("acme", "beta", "coop", "dora", "echo")


def opening(*, count: int = 3, **rules: Any) -> Opening:
    facts = {
        "consortium": "demo",
        "proposal": "sha256:" + "ab" * 32,
        "number": 1,
        "electorate": dict.fromkeys(MEMBERS[:count], 1),
        "quorum_percent": 50,
        "pass_percent": 50,
        "opened_ms": 1000,
        "closes_ms": 61_000,
        "charter": "sha256:" + "cd" * 32,
    }
    return Opening.from_facts({**facts, **rules})


def read(text: str) -> Ballot:
    return Ballot.from_note(notes.parse(ANYBODY.sign(text)))


def heard(text: str) -> Motion:
    return Motion.from_note(notes.parse(ANYBODY.sign(text)))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_the_golden_vectors_hold(vector: dict[str, Any]) -> None:
    of = Opening.from_facts(vector["opening"])
    assert (of.rules_digest, of.electorate_digest) == (vector["rules"], vector["electorate"])
    cast = [(b["index"], b["at_ms"], read(b["text"])) for b in vector["ballots"]]
    moved = [(m["index"], m["at_ms"], heard(m["text"])) for m in vector.get("motions", ())]
    count = tally(of, cast, vector["now_ms"], moved)
    assert count.facts == vector["expected"]
    assert (count.phase, count.closes_ms) == (
        vector.get("phase", count.phase),
        vector.get("closes_ms", count.closes_ms),
    )


def test_every_way_three_members_can_vote_is_decided_by_the_majority_of_those_who_take_sides() -> None:
    of = opening()
    ways: list[tuple[Choice | None, ...]] = [
        (a, b, c) for a in (*CHOICES, None) for b in (*CHOICES, None) for c in (*CHOICES, None)
    ]
    for way in ways:
        cast = [
            (i, 2000 + i, ballot(of, m, choice))
            for i, (m, choice) in enumerate(zip(MEMBERS[:3], way, strict=True))
            if choice
        ]
        expected = len(cast) >= 2 and way.count("for") > way.count("against")
        assert (tally(of, cast, 61_000).state == "passed") == expected, way
        assert tally(of, cast, 60_999).state == (tally(of, cast, 61_000).state if None not in way else "open")


def test_the_order_in_which_ballots_are_handed_over_changes_nothing() -> None:
    of = opening()
    cast = [(i, 2000 + i, ballot(of, *vote, nonce=f"{i:016x}")) for i, vote in enumerate(_votes())]
    results = {json.dumps(tally(of, order, 61_000).facts) for order in permutations(cast)}
    assert len(results) == 1


def _votes() -> list[tuple[str, Choice]]:
    return [("acme", "for"), ("acme", "against"), ("beta", "for"), ("acme", "abstain"), ("zeta", "for")]


@given(
    st.lists(
        st.tuples(st.sampled_from((*MEMBERS, "zeta")), st.sampled_from(CHOICES), st.integers(0, 70_000)),
        max_size=12,
    ),
    st.integers(0, 70_000),
    st.integers(1, 100),
    st.integers(50, 100),
)
def test_what_must_hold_of_any_vote(
    votes: list[tuple[str, Choice, int]], now_ms: int, quorum: int, share: int
) -> None:
    of = opening(count=5, quorum_percent=quorum, pass_percent=share)
    cast = [(i, at, ballot(of, m, c, nonce=f"{i:016x}")) for i, (m, c, at) in enumerate(votes)]
    result = tally(of, cast, now_ms)
    assert result.for_weight + result.against_weight + result.abstain_weight == result.turnout_weight
    assert result.turnout_weight == len(result.counted) <= result.total_weight == 5
    assert set(result.counted) <= set(MEMBERS)
    assert (result.state == "open") == (now_ms < 61_000 and result.turnout_weight < 5)
    if result.state == "passed":
        assert result.for_weight > result.against_weight
        assert result.turnout_weight * 100 >= quorum * 5
    for choice, index in result.counted.values():
        assert votes[index][1] == choice and 1000 <= votes[index][2] < 61_000


def test_an_opening_has_equal_power_and_the_charters_rules() -> None:
    of: Charter = charter(voting={"window_s": 90, "quorum_percent": 60, "pass_percent": 66})
    found = Opening.of(proposal(of), of, number=7, now_ms=5)
    assert found.electorate == {"acme": 1, "beta": 1, "coop": 1}
    assert (found.quorum_percent, found.pass_percent, found.opened_ms, found.closes_ms) == (60, 66, 5, 90_005)
    assert Opening.from_facts(json.loads(json.dumps(found.facts))) == found


@pytest.mark.parametrize(
    "change",
    [
        {"quorum_percent": 51},
        {"pass_percent": 51},
        {"closes_ms": 61_001},
        {"share": "2/3"},
        {"members": "2/3"},
        {"objection": "1/3"},
        {"extend_ms": 1},
        {"queue_ms": 1},
        {"grace_ms": 1},
        {"officers": ["acme"]},
        {"candidates": ["a", "b"]},
        {"credits": 9},
    ],
)
def test_each_rule_is_in_the_digest_a_ballot_names(change: dict[str, Any]) -> None:
    assert opening(**change).rules_digest != opening().rules_digest
    assert opening(**change).electorate_digest == opening().electorate_digest


def test_the_electorates_digest_names_members_and_weights() -> None:
    digests = {opening(electorate=e).electorate_digest for e in ({"acme": 1}, {"acme": 2}, {"beta": 1})}
    assert len(digests) == 3
    assert opening(dormant=["acme"]).electorate_digest not in {*digests, opening().electorate_digest}


@pytest.mark.parametrize(
    "change",
    [
        {"electorate": {"acme": 0}},
        {"electorate": {"acme": 1.0}},
        {"electorate": {"acme": True}},
        {"quorum_percent": 50.0},
        {"number": "1"},
        {"extra": 1},
        {"share": ""},
        {"officers": [1]},
        {"officers": "acme"},
        {"contributed": {"acme": -1}},
        {"contributed": {"acme": 1.5}},
        {"dormant": []},
        {"queue_ms": 0},
        {"opened_ms": 61_000},
    ],
)
def test_facts_that_are_no_opening_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Opening.from_facts({**opening().facts, **change})
