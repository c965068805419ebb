"""A proposal or ballot has one writing; anything else is no proposal and no ballot."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from commons import notes
from commons.ballots import Ballot, Proposal, kind
from commons.delegating import check_ballot_key, open_ballot
from commons.motions import BallotKey
from commons.notes import NoteError
from commons.opening import Opening
from tests.support.chamber import ballot, charter, proposal, sign, signer

OPENING = Opening.of(proposal(charter()), charter(), number=1, now_ms=1000)
PROPOSAL = proposal(charter())
BALLOT = ballot(OPENING, "acme", "for")
VECTORS = json.loads((Path(__file__).parents[1] / "support" / "vectors" / "ballots.json").read_text())


def reread(text: str) -> Proposal | Ballot:
    note = notes.parse(signer("acme").sign(text))
    return Proposal.from_note(note) if kind(note) == Proposal.KIND else Ballot.from_note(note)


def test_what_was_composed_is_read_back_equal() -> None:
    assert reread(PROPOSAL.compose()) == PROPOSAL
    assert reread(BALLOT.compose()) == BALLOT


def test_the_signed_bytes_can_be_read_by_a_person() -> None:
    lines = sign(PROPOSAL).decode().splitlines()
    assert lines[:6] == [
        "hansa-proposal/v1",
        "consortium demo",
        "proposer acme",
        "title Twice the steps",
        "feature inner-steps",
        'parameters {"steps":20}',
    ]
    assert lines[-1].startswith("— acme ")


def test_the_id_binds_consortium_proposer_content_and_base() -> None:
    changes = (
        {"consortium": "other"},
        {"proposer": "beta"},
        {"title": "Other"},
        {"feature": "routing"},
        {"parameters": {"steps": 21}},
        {"charter": "sha256:" + "0" * 64},
        {"effective_round": 3},
        {"nonce": "11" * 16},
    )
    ids = {PROPOSAL.id, *(proposal(charter(), **change).id for change in changes)}
    assert len(ids) == len(changes) + 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"steps":20}', '{"steps": 20}'),
        ('{"steps":20}', '{"steps":20,"steps":20}'),
        ('{"steps":20}', '{"steps":NaN}'),
        ('{"steps":20}', '{"steps":1e999}'),
        ('{"steps":20}', '{"steps":2e1}'),
        ('{"steps":20}', '{"a":"\\u0041"}'),
        ('{"steps":20}', '{"a":"\\ud800"}'),
        ('{"steps":20}', "[20]"),
        ('{"steps":20}', "steps=20"),
        ('{"steps":20}', "[" * 900),
        ("effective-round 2", "effective-round 02"),
        ("effective-round 2", "effective-round 0"),
        ("effective-round 2", "effective-round -2"),
        ("effective-round 2", "effective-round ٢"),
        ("effective-round 2", "effective-round 1000001"),
        ("charter sha256:", "charter sha256:0"),
        ("nonce 00", "nonce G0"),
        ("nonce " + "00" * 16, "nonce 00"),
        ("title Twice the steps\n", "title Twice the steps\ntitle Half the steps\n"),
        ("proposer acme\n", ""),
        ("hansa-proposal/v1", "hansa-proposal/v2"),
    ],
)
def test_another_writing_of_a_proposal_is_refused(old: str, new: str) -> None:
    text = PROPOSAL.compose()
    assert old in text
    with pytest.raises(NoteError):
        reread(text.replace(old, new, 1))


@pytest.mark.parametrize("case", VECTORS["ballots"], ids=lambda case: case["name"])
def test_a_ballot_has_one_writing(case: dict[str, Any]) -> None:
    if case["fields"] is None:
        with pytest.raises(NoteError):
            Ballot.from_note(notes.parse(signer("acme").sign(case["text"])))
    else:
        found = Ballot.from_note(notes.parse(signer("acme").sign(case["text"])))
        assert {name.replace("_", "-"): value for name, value in vars(found).items()} == case["fields"]
        assert found.compose() == case["text"]


@pytest.mark.parametrize("case", VECTORS["delegations"], ids=lambda case: case["name"])
def test_a_member_delegates_its_ballots_to_a_key_of_its_own_or_is_refused(case: dict[str, Any]) -> None:
    note = notes.parse(base64.b64decode(case["note"]))
    assert {m.name: m.key for m in charter().members} == VECTORS["charter"]["members"]
    assert isinstance(check_ballot_key(note, charter()), BallotKey) == case["holds"]


@pytest.mark.parametrize("case", VECTORS["signed"], ids=lambda case: case["name"])
def test_a_ballot_is_signed_by_its_member_or_the_key_it_delegated_to(case: dict[str, Any]) -> None:
    note, member = notes.parse(base64.b64decode(case["note"])), charter().member("acme")
    assert member is not None and member.key == VECTORS["member"]
    text = case["delegation"]
    delegated = BallotKey.from_note(notes.parse(base64.b64decode(text))) if text else None
    assert (open_ballot(note, member, delegated, case["at_ms"]) is None) == case["holds"]


def test_a_title_cannot_smuggle_lines_or_turn_text_around() -> None:
    for title in ("a\nfeature routing", "a\u202eb", "", " a", "x" * 1001):
        with pytest.raises(NoteError):
            proposal(charter(), title=title).compose()
