"""A proposal or ballot has one writing; anything else is no proposal and no ballot."""

from __future__ import annotations

import pytest

from commons import notes
from commons.ballots import Ballot, Proposal, kind
from commons.notes import NoteError
from commons.opening import Opening
from tests.support.chamber import ballot, charter, proposal, sign, signer

OPENING = Opening.of(proposal(charter()), charter(), number=1, now_ms=1000)
PROPOSAL = proposal(charter())
BALLOT = ballot(OPENING, "acme", "for")


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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("choice for", "choice For"),
        ("choice for", "choice yes"),
        ("choice for", "choice for against"),
        ("rules sha256:", "rules md5:"),
        ("proposal sha256:", "proposal SHA256:"),
        ("nonce ", "nonce  "),
        ("voter acme\n", "voter acme\nweight 100\n"),
        ("hansa-ballot/v1", "hansa-proposal/v1"),
    ],
)
def test_another_writing_of_a_ballot_is_refused(old: str, new: str) -> None:
    text = BALLOT.compose()
    assert old in text
    with pytest.raises(NoteError):
        reread(text.replace(old, new, 1))


def test_a_title_cannot_smuggle_lines_or_turn_text_around() -> None:
    for title in ("a\nfeature routing", "a\u202eb", "", " a", "x" * 1001):
        with pytest.raises(NoteError):
            proposal(charter(), title=title).compose()
