"""What only a broken or lying party does with votes: each is answered, and none is believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from commons import chain_file, charter_file, features
from commons.ballots import Ballot
from commons.chain import VerifiedCharter, Wanted, verify_chain
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.features.patching import patch_parameters
from commons.motions import Motion
from commons.notes import digest, parse
from commons.pledging import Pledge
from commons.records import Kind, Record, fact
from governance.pausing import Pauses
from governance.proof import chain_bundle
from tests.support.chamber import Chamber, ballot, charter, sign, signer
from tests.unit.test_anchors import anchor, law, vouch
from tests.unit.test_chain import refused, verify
from tests.unit.test_course import motion, ruled
from tests.unit.test_verify import MODEL


def test_a_ballot_with_a_reason_is_read_back_equal_and_names_it() -> None:
    cast = ballot(Chamber().propose(), "beta", "against", reason=digest(b"Too dear."))
    note = parse(sign(cast))
    assert Ballot.from_note(note) == cast and f"reason {cast.reason}" in note.text


def test_a_proof_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_file, "FILE_BYTES_MAX", 3)
    with pytest.raises(ValueError, match="file of 4 bytes, at most 3"):
        chain_file.ChainFile.load(b"1234")


def test_an_anchor_of_what_a_site_has_verified_since_takes_it_nowhere() -> None:
    chamber = Chamber()
    law(chamber, 11)
    vouch(chamber, "acme", "beta", "coop")
    law(chamber, 12)
    known = charter_file.digest(chamber.charter)
    log = chamber.journal
    found = verify_chain(
        log.entries(), log.checkpoint(), [], trust=chamber.trust, least_version=3, known=known
    )
    assert isinstance(found, VerifiedCharter)
    assert "charter version 3, which was verified here before" in found.steps[4]
    stranger = anchor(chamber, "acme", 1, charter="sha256:" + "0" * 64)
    with_it = [*log.all, Record(Kind.ANCHOR, chamber.now_ms, stranger)]
    assert isinstance(verify(with_it), VerifiedCharter), "of a charter that is not shown"


def test_a_proposal_that_was_for_another_member_to_make_is_not_law_whatever_the_coordinator_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chamber = Chamber(charter(model__config=MODEL))
    with monkeypatch.context() as lie:
        lie.setattr(features, "may_not_propose", lambda *_: None)
        chamber.pass_into_law(
            feature="expert-add", parameters={"site": "berlin", "expert": "law-1"}, proposer="coop"
        )
    answer = verify(chamber.journal.all, founding=chamber.founding)
    refused(answer, "5 votes", "is for acme to propose, not for coop")


def test_an_override_that_is_voted_after_the_charter_lifts_no_veto_before_it() -> None:
    chamber = Chamber(ruled())
    opening = chamber.propose(effective_round=1)
    chamber.now_ms = opening.opened_ms
    chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    chamber.submit(motion(opening, "coop", "veto", reason="No."))
    chamber.now_ms += 61_000
    after = features.apply(chamber.charter, "inner-steps", {"steps": 20})
    assert isinstance(after, Charter)
    executed = features.execution_facts(opening.proposal, 1, chamber.charter, after, 2)
    at = chamber.journal.size
    lift = chamber.propose(
        feature="override-veto", parameters={"proposal": opening.proposal}, effective_round=1, nonce="1" * 32
    )
    chamber.vote(lift, acme="for", beta="for", coop="for")
    chamber.close()
    lie = [
        fact(Kind.EXECUTION, chamber.now_ms, **executed),
        Record(Kind.CHARTER, chamber.now_ms, charter_file.canonical(after)),
    ]
    records = chamber.journal.all
    refused(
        verify([*records[:at], *lie, *records[at:]], founding=chamber.founding),
        "5 votes",
        "when it is vetoed",
    )


def test_a_pledge_that_came_after_the_charter_did_not_carry_it() -> None:
    chamber = Chamber()
    opening = chamber.propose(needs_micro=5)
    chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    for item in chamber.proposals.items.values():
        item.needs_micro = 0
    chamber.execute()
    late = Pledge(
        consortium="demo", proposal=opening.proposal, member="acme", to="beta", amount_micro=5,
        expires_ms=chamber.now_ms + 1000, nonce="0" * 16,
    )  # fmt: skip
    records = [*chamber.journal.all, Record(Kind.PLEDGE, chamber.now_ms, signer("acme").sign(late.text))]
    refused(verify(records), "5 votes", "needs pledges of 5 micro, and 0 stand")


def test_what_refused_on_the_charter_it_was_voted_on_is_never_carried_out() -> None:
    teacher = {"teacher": "sha256:" + "0" * 64}
    answer = features.carry_out([charter()], "distillation", teacher)
    assert isinstance(answer, Refusal) and "no trainer here can learn from another" in answer.message


def test_a_patch_that_builds_on_what_it_adds_itself_is_no_charter() -> None:
    of = charter()
    patch: list[dict[str, Any]] = [
        {"op": "add", "path": "/learning/secret", "value": {"a": 1}},
        {"op": "add", "path": "/learning/secret/b", "value": 2},
    ]
    answer = features.apply(of, "config-patch", patch_parameters(of, patch))
    assert isinstance(answer, Refusal) and answer.code is Code.CHARTER_INVALID
    assert "learning.secret" in answer.message


@pytest.mark.parametrize("change", [{"feature": "nonsense"}, {"parameters": {"steps": 0}}])
def test_nobody_may_propose_what_there_is_not(change: dict[str, Any]) -> None:
    words = {"feature": "inner-steps", "parameters": {"steps": 20}} | change
    answer = features.may_not_propose(charter(), words["feature"], words["parameters"], "acme")
    assert isinstance(answer, Refusal)


def test_another_note_pauses_nothing() -> None:
    chamber = Chamber()
    move = Motion(consortium="demo", proposal="p", member="acme", motion="veto", reason="-", nonce="0" * 16)
    note = parse(signer("acme").sign(move.text))
    answer = Pauses().decide_pause(note, chamber.charter, chamber.now_ms)
    assert isinstance(answer, Refusal) and answer.code is Code.NOTE_MALFORMED
    assert Pauses().find(b"nonsense") is None


def test_a_caller_who_has_seen_more_than_there_is_or_a_version_there_is_not() -> None:
    chamber = Chamber()
    chamber.pass_into_law()
    answer = chain_bundle(chamber, Wanted(have_size=99))  # type: ignore[arg-type]
    assert isinstance(answer, Refusal) and answer.code is Code.LOG_FORKED
    whole = chain_bundle(chamber, Wanted())  # type: ignore[arg-type]
    strange = chain_bundle(chamber, replace(Wanted(), known_version=99))  # type: ignore[arg-type]
    assert strange == whole, "it is shown everything from the founding"


class Published:
    """Of witnesses: the checkpoint they cosigned, if there is one."""

    def __init__(self, note: bytes | None) -> None:
        self._note = note

    def published(self, at_least: int) -> bytes | None:
        return self._note

    def newest(self, at_least: int) -> bytes | None:
        return None

    def wait_published(self, at_least: int, timeout_s: float) -> None:
        """Nobody comes."""

    def unwitnessed_since_ms(self) -> int | None:
        return None


def test_what_witnesses_have_published_is_shown_where_the_charter_asks_for_them() -> None:
    chamber = Chamber(charter(witnesses={"quorum": 1}))
    chamber.pass_into_law()
    cosigned = chamber.journal.checkpoint()
    chamber.propose(nonce="1" * 32, parameters={"steps": 30})
    for published, wanted in ((cosigned, cosigned), (None, chamber.journal.checkpoint())):
        bundle = chain_bundle(chamber, Wanted(), Published(published))  # type: ignore[arg-type]
        assert not isinstance(bundle, Refusal) and bundle[0] == wanted
