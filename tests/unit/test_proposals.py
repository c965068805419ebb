"""From proposal to law in the chamber, and the ways to cheat there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.errors import Code, Refusal
from commons.notes import Signer
from commons.records import Kind, Record
from governance.proposals import Proposals
from tests.support.chamber import (
    START_MS,
    WINDOW_MS,
    Chamber,
    ballot,
    charter,
    proposal,
    sign,
    signer,
)


def refused(chamber: Chamber, note: bytes, code: Code) -> Refusal:
    size = chamber.journal.size
    answer = chamber.try_submit(note)
    assert isinstance(answer, Refusal)
    assert answer.code == code, answer
    assert chamber.journal.size == size
    return answer


def test_a_passed_vote_is_the_next_charter_from_its_round_on() -> None:
    chamber = Chamber()
    opening = chamber.propose(effective_round=3)
    chamber.vote(opening, acme="for", beta="against", coop="for")
    assert [chamber.journal.record(i).kind for i in chamber.close()] == [Kind.OUTCOME]
    assert chamber.execute(2) == []
    assert chamber.charter.version == 1
    assert [chamber.journal.record(i).kind for i in chamber.execute(3)] == [Kind.EXECUTION, Kind.CHARTER]
    assert (chamber.charter.version, chamber.charter.learning.inner_steps) == (2, 20)
    (view,) = chamber.proposals.views()
    assert (view.state, view.executed_round, view.charter_version) == ("executed", 3, 2)
    assert (view.for_weight, view.against_weight, view.number) == (2, 1, 1)
    assert view.patch == ({"op": "replace", "path": "/learning/inner_steps", "value": 20},)


def test_a_defeated_proposal_changes_nothing_and_may_be_made_again() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="against", coop="abstain")
    chamber.close()
    assert chamber.state(opening.proposal) == "defeated"
    assert chamber.execute(9) == []
    assert chamber.propose(nonce="11" * 16).number == 2


def test_an_open_proposal_is_decided_at_the_end_of_its_window_not_before() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for")
    chamber.now_ms = START_MS + WINDOW_MS - 1
    assert chamber.close() == []
    chamber.now_ms += 1
    assert len(chamber.close()) == 1
    assert chamber.close() == []
    assert chamber.state(opening.proposal) == "queued"


def test_double_vote_the_last_one_counts_and_all_are_kept() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    first, last = chamber.vote(opening, acme="for"), chamber.vote(opening, acme="against")
    assert [chamber.journal.record(i).kind for i in (*first, *last)] == [Kind.BALLOT] * 2
    (view,) = chamber.proposals.views()
    assert (view.for_weight, view.against_weight) == (0, 1)
    assert [b.index for b in view.ballots] == last


def test_the_same_note_again_is_found_and_not_recorded_twice() -> None:
    chamber = Chamber()
    note = sign(proposal(chamber.charter))
    at, _ = chamber.submit(note)
    opening = chamber.proposals.views()[0]
    vote = sign(ballot(chamber.propose(feature="routing", parameters={"routing": "lean"}), "acme", "for"))
    (index,) = chamber.submit(vote)
    assert (chamber.try_submit(note), chamber.try_submit(vote)) == ([], [])
    assert (chamber.proposals.find(note), chamber.proposals.find(vote)) == (at, index)
    assert chamber.proposals.find(b"no note") is None
    assert opening.number == 1


def test_replaying_an_earlier_ballot_does_not_undo_the_later_one() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    early = sign(ballot(opening, "acme", "for"))
    chamber.submit(early)
    chamber.vote(opening, acme="against")
    assert chamber.try_submit(early) == []
    assert chamber.proposals.views()[0].against_weight == 1


@pytest.mark.parametrize(("shift_ms", "taken"), [(-1, True), (0, False), (1, False)])
def test_vote_around_the_close_counts_until_the_boundary_exclusive(shift_ms: int, taken: bool) -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.now_ms = opening.closes_ms + shift_ms
    note = sign(ballot(opening, "acme", "for"))
    if taken:
        assert len(chamber.submit(note)) == 1
    else:
        refused(chamber, note, Code.PROPOSAL_CLOSED)


def test_vote_before_the_opening_is_refused_and_at_its_very_millisecond_taken() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    note = sign(ballot(opening, "acme", "for"))
    chamber.now_ms -= 1
    refused(chamber, note, Code.PROPOSAL_CLOSED)
    chamber.now_ms += 1
    assert len(chamber.submit(note)) == 1


def test_vote_after_all_have_voted_is_refused_even_before_the_outcome_is_recorded() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for", coop="for")
    refused(chamber, sign(ballot(opening, "coop", "against")), Code.PROPOSAL_CLOSED)


def test_ballot_replayed_to_another_proposal_consortium_rules_or_electorate_is_refused() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    zero = "sha256:" + "0" * 64
    for change, code in (
        ({"proposal": zero}, Code.PROPOSAL_UNKNOWN),
        ({"consortium": "other"}, Code.BALLOT_MISMATCH),
        ({"rules": zero}, Code.BALLOT_MISMATCH),
        ({"electorate": zero}, Code.BALLOT_MISMATCH),
    ):
        refused(chamber, sign(ballot(opening, "acme", "for", **change)), code)
    other = chamber.propose(feature="routing", parameters={"routing": "lean"})
    chamber.submit(sign(ballot(other, "acme", "for")))
    assert chamber.proposals.views()[0].ballots == ()


def test_ballot_by_a_non_member_is_refused() -> None:
    chamber = Chamber()
    refused(chamber, sign(ballot(chamber.propose(), "zeta", "for")), Code.NOT_IN_ELECTORATE)
    refused(chamber, sign(proposal(charter(), proposer="zeta")), Code.NOT_AUTHORISED)


@pytest.mark.parametrize(
    "by",
    [
        signer("beta"),
        Signer("acme", b"\x01" * 32),
        signer("acme/berlin"),
        signer("demo"),
    ],
    ids=["another member", "a key of the same name", "the site's key", "the journal's key"],
)
def test_forged_signature_or_a_site_key_instead_of_the_member_key_is_refused(by: Signer) -> None:
    chamber = Chamber()
    opening = chamber.propose()
    refused(chamber, sign(ballot(opening, "acme", "for"), by), Code.SIGNATURE_INVALID)
    refused(chamber, sign(proposal(charter(), nonce="11" * 16), by), Code.SIGNATURE_INVALID)


def test_a_changed_word_breaks_the_signature() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    note = sign(ballot(opening, "acme", "against"))
    refused(chamber, note.replace(b"choice against", b"choice for"), Code.SIGNATURE_INVALID)
    swapped = note.replace(b"voter acme", b"voter beta")
    refused(chamber, swapped, Code.SIGNATURE_INVALID)


def test_malleated_note_is_refused() -> None:
    chamber = Chamber()
    note = sign(ballot(chamber.propose(), "acme", "for"))
    text, _, signature = note.decode().rpartition("\n\n")
    line = signature.encode()
    for other in (
        note.replace(b"\n", b"\r\n"),
        note.replace(b"\n\n", b"\n\n\n"),
        note + b"\n",
        note + b"trailing",
        note[:-1],
        note + sign(ballot(chamber.propose(nonce="11" * 16, feature="routing", parameters={"routing": "lean"}), "beta", "for")).rpartition(b"\n\n")[2],
        note + line,
        note + line * 16,
        note.replace(text.encode(), text.encode() + b"\nreason none"),
        b"\xef\xbb\xbf" + note,
        b"",
    ):  # fmt: skip
        answer = chamber.try_submit(other)
        assert isinstance(answer, Refusal)
        assert answer.code in (Code.NOTE_MALFORMED, Code.SIGNATURE_INVALID), answer


def test_another_kind_of_note_is_no_vote() -> None:
    chamber = Chamber()
    text = proposal(charter()).compose().replace("hansa-proposal/v1", "hansa-usage/v1")
    answer = refused(chamber, signer("acme").sign(text), Code.NOTE_MALFORMED)
    assert "hansa-usage/v1" in answer.message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"feature": "no-such"}, Code.FEATURE_UNKNOWN),
        ({"parameters": {"steps": -1}}, Code.FEATURE_PARAMETERS_INVALID),
        ({"parameters": {"steps": 10}}, Code.FEATURE_PARAMETERS_INVALID),
        ({"parameters": {"steps": 20, "path": "/voting"}}, Code.FEATURE_PARAMETERS_INVALID),
        ({"charter": "sha256:" + "0" * 64}, Code.PROPOSAL_STALE),
        ({"consortium": "other"}, Code.REQUEST_INVALID),
    ],
)
def test_a_proposal_that_could_not_be_carried_out_is_not_opened(change: dict[str, Any], code: Code) -> None:
    refused(Chamber(), sign(proposal(charter(), **change)), code)


def test_a_proposal_on_a_charter_no_longer_in_force_is_refused() -> None:
    chamber = Chamber()
    chamber.pass_into_law()
    note = sign(proposal(chamber.founding, feature="routing", parameters={"routing": "lean"}))
    assert "version 2 is in force now" in refused(chamber, note, Code.PROPOSAL_STALE).message


def test_the_same_wish_twice_is_refused_while_open_but_another_member_may_have_it_too() -> None:
    chamber = Chamber()
    chamber.propose()
    answer = refused(chamber, sign(proposal(charter(), nonce="11" * 16)), Code.PROPOSAL_EXISTS)
    assert "P-0001" in answer.message
    assert chamber.propose(proposer="beta").number == 2


def test_two_winners_on_the_same_paths_the_second_is_stale() -> None:
    chamber = Chamber()
    first = chamber.propose()
    second = chamber.propose(proposer="beta", parameters={"steps": 30})
    for opening in (second, first):
        chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    kinds = [chamber.journal.record(i).kind for i in chamber.execute()]
    assert kinds == [Kind.EXECUTION, Kind.CHARTER, Kind.OUTCOME]
    assert chamber.charter.learning.inner_steps == 20
    assert (chamber.state(first.proposal), chamber.state(second.proposal)) == ("executed", "stale")
    why = chamber.journal.all[-1].facts["why"]
    assert "/learning/inner_steps changed in version 2" in why
    assert chamber.execute(9) == []


def test_two_winners_on_different_paths_are_both_carried_out_in_one_go() -> None:
    chamber = Chamber()
    openings = [chamber.propose(), chamber.propose(feature="routing", parameters={"routing": "lean"})]
    for opening in openings:
        chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    chamber.execute()
    assert chamber.charter.version == 3
    assert (chamber.charter.learning.inner_steps, chamber.charter.learning.routing) == (20, "lean")


def test_the_one_that_passed_first_is_carried_out_first() -> None:
    chamber = Chamber()
    first, second = chamber.propose(), chamber.propose(proposer="beta", parameters={"steps": 30})
    chamber.vote(second, acme="for", beta="for", coop="for")
    chamber.close()
    chamber.vote(first, acme="for", beta="for", coop="for")
    chamber.close()
    chamber.execute()
    assert chamber.charter.learning.inner_steps == 30
    assert chamber.state(first.proposal) == "stale"


def test_execute_twice_does_nothing_the_second_time() -> None:
    chamber = Chamber()
    chamber.pass_into_law()
    assert chamber.execute(2) == chamber.execute(3) == []
    assert chamber.charter.version == 2


def test_deciding_is_deterministic_and_changes_nothing() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    chamber.vote(opening, acme="for", beta="for", coop="for")
    assert chamber.proposals.decide_close(9) == chamber.proposals.decide_close(9)
    chamber.close()
    decided = chamber.proposals.decide_execute(chamber.charter, 2, START_MS)
    assert decided == chamber.proposals.decide_execute(chamber.charter, 2, START_MS)
    assert chamber.state(opening.proposal) == "queued"


def test_replaying_the_journal_gives_the_same_view_at_every_length() -> None:
    chamber = Chamber()
    snapshots: list[str] = []
    apply = chamber.proposals.apply

    def spied(index: int, record: Record) -> None:
        apply(index, record)
        if record.kind is not Kind.PROPOSAL:
            snapshots.append(_shown(chamber.proposals))

    chamber.proposals.apply = spied  # type: ignore[method-assign]
    chamber.pass_into_law()
    chamber.pass_into_law(feature="routing", parameters={"routing": "lean"}, proposer="coop")
    again = Proposals()
    replayed = []
    for index, record in enumerate(chamber.journal.all):
        again.apply(index, record)
        if record.kind is not Kind.PROPOSAL and index > 4:
            replayed.append(_shown(again))
    assert replayed == snapshots


def _shown(proposals: Proposals) -> str:
    return json.dumps([v.model_dump(mode="json") for v in proposals.views()])


def test_the_ids_of_notes_are_what_the_journal_says() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    assert opening.proposal == proposal(charter()).id
    assert opening.charter == charter_file.digest(charter())
    assert {Proposal.KIND, Ballot.KIND} == {"hansa-proposal/v1", "hansa-ballot/v1"}
