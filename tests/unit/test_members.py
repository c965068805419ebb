"""A consortium begins when every member has signed, and a site when its partner has."""

from __future__ import annotations

import hashlib

import pytest

from commons import charter_file
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.notes import Signer
from commons.records import Kind, Record
from governance.members import Members
from tests.support.chamber import LOG, Chamber, charter, delegation, founding_notes, signer


def found(of: Charter, notes: list[bytes] | None = None, log: Signer = LOG) -> list[Record] | Refusal:
    return Members().decide_found(of, founding_notes(of) if notes is None else notes, log.vkey, 5)


def refusal(answer: list[Record] | Refusal) -> Refusal:
    assert isinstance(answer, Refusal)
    return answer


def test_the_first_records_are_genesis_charter_and_one_signature_per_member() -> None:
    of = charter()
    records = found(of, founding_notes(of)[::-1])
    assert isinstance(records, list)
    assert [r.kind for r in records] == [Kind.GENESIS, Kind.CHARTER, *[Kind.FOUNDING] * 3]
    assert records[1].body == charter_file.canonical(of)
    assert [r.body for r in records[2:]] == founding_notes(of)


def test_one_missing_signature_stops_the_founding_and_is_named() -> None:
    answer = refusal(found(charter(), founding_notes(charter(), ["acme", "coop"])))
    assert answer.code == Code.CHARTER_INVALID
    assert answer.details == {"lacking": ["beta"]}


def test_a_member_cannot_sign_twice_for_another() -> None:
    notes = founding_notes(charter(), ["acme", "acme", "coop"])
    assert refusal(found(charter(), notes)).details == {"lacking": ["beta"]}


def test_a_signature_over_another_charter_or_by_a_stranger_does_not_count() -> None:
    other = charter(voting__window_s=1)
    assert "signed another charter" in refusal(found(charter(), founding_notes(other))).message
    stranger = founding_notes(charter(), ["zeta"])
    assert refusal(found(charter(), stranger)).code == Code.NOT_AUTHORISED
    forged = founding_notes(charter())[0].replace(b"partner acme", b"partner beta")
    assert refusal(found(charter(), [forged])).code == Code.SIGNATURE_INVALID


@pytest.mark.parametrize(
    ("of", "what"),
    [
        (charter(version=2), "founded on version 1"),
        (charter(features={"routing": True}), "version 1 has none"),
        (charter(consortium__log_key=Signer("demo", b"\x09" * 32).vkey), "the charter names another"),
        (charter(consortium__log_key="no key"), "not a verifier key"),
    ],
)
def test_a_charter_that_cannot_be_a_first_one_is_refused(of: Charter, what: str) -> None:
    assert what in refusal(found(of)).message


def test_founding_again_on_the_same_charter_changes_nothing_and_on_another_is_refused() -> None:
    chamber = Chamber()
    notes = founding_notes(charter())
    assert chamber.members.decide_found(charter(), notes, LOG.vkey, 6) == []
    other = charter(voting__window_s=1)
    answer = refusal(chamber.members.decide_found(other, founding_notes(other), LOG.vkey, 6))
    assert "was founded on charter" in answer.message


def test_a_site_is_enrolled_by_its_partner_and_its_keys_can_be_replaced_but_not_brought_back() -> None:
    chamber = Chamber()
    old, new = signer("acme/berlin"), Signer("acme/berlin", b"\x07" * 32)
    chamber.take(chamber.members.decide_enrol_site(delegation("acme", "berlin"), 6))
    assert chamber.members.enrolled == ("berlin",)
    assert chamber.members.site_key("berlin") == old.verifier
    assert chamber.members.decide_enrol_site(delegation("acme", "berlin"), 7) == []
    chamber.take(chamber.members.decide_enrol_site(delegation("acme", "berlin", key=new), 8))
    assert chamber.members.site_key("berlin") == new.verifier
    replayed = refusal(chamber.members.decide_enrol_site(delegation("acme", "berlin"), 9))
    assert "were replaced by newer ones" in replayed.message
    assert chamber.members.site_key("turin") is None


@pytest.mark.parametrize(
    ("note", "code", "what"),
    [
        (delegation("acme", "paris"), Code.NOT_AUTHORISED, "no site 'paris'"),
        (delegation("acme", "turin"), Code.NOT_AUTHORISED, "no site 'turin' of partner 'acme'"),
        (delegation("acme", "berlin", by=signer("beta")), Code.SIGNATURE_INVALID, "not signed by acme"),
        (
            delegation("acme", "berlin", by=Signer("acme", b"\x08" * 32)),
            Code.SIGNATURE_INVALID,
            "not signed by acme",
        ),
        (delegation("acme", "berlin", key=signer("beta/turin")), Code.NOT_AUTHORISED, "goes by 'beta/turin'"),
        (b"hansa-site/v1\n", Code.NOTE_MALFORMED, "blank line"),
    ],
)
def test_a_delegation_that_its_partner_did_not_give_is_refused(note: bytes, code: Code, what: str) -> None:
    answer = refusal(Chamber().members.decide_enrol_site(note, 6))
    assert answer.code == code
    assert what in answer.message


def test_a_site_cannot_be_given_a_members_own_key() -> None:
    member = Signer.from_text(signer("acme").to_text())
    disguised = Signer("acme/berlin", hashlib.sha256(b"acme").digest())
    assert disguised.verifier.public == member.verifier.public
    answer = refusal(Chamber().members.decide_enrol_site(delegation("acme", "berlin", key=disguised), 6))
    assert "a key of its own" in answer.message


def test_replaying_the_journal_gives_the_same_members() -> None:
    chamber = Chamber()
    chamber.take(chamber.members.decide_enrol_site(delegation("beta", "turin"), 6))
    chamber.pass_into_law()
    again = Members()
    for index, record in enumerate(chamber.journal.all):
        again.apply(index, record)
    assert vars(again) == vars(chamber.members)
    assert again.charter.version == 2
    assert again.digest == charter_file.digest(again.charter)
