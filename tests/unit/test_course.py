"""The life of a proposal follows from the journal and its time alone: each state in its turn."""

from __future__ import annotations

from typing import Any

import pytest

from commons.charter import Charter
from commons.course import State
from commons.errors import Refusal
from commons.motions import Motion
from commons.opening import Opening
from commons.records import Kind
from tests.support.chamber import START_MS, Chamber, ballot, charter, proposal, sign, signer

MINUTE_MS = 60_000
RULE = {
    "type": "feature.enable",
    "quorum_percent": 60,
    "delay_s": 60,
    "window_s": 120,
    "extend_s": 30,
    "queue_s": 60,
    "grace_s": 120,
}
NEXT: dict[State, set[State]] = {
    "pending": {"active", "cancelled", "succeeded", "defeated"},
    "active": {"paused", "succeeded", "defeated", "queued"},
    "paused": {"active", "succeeded", "defeated", "queued"},
    "succeeded": {"queued"},
    "queued": {"vetoed", "executed", "stale", "failed", "expired"},
    "vetoed": {"queued", "expired"},
    "cancelled": set(),
    "defeated": set(),
    "ranked": set(),
    "expired": set(),
    "executed": set(),
    "stale": set(),
    "failed": set(),
}
"""What each state may become by one record, or by time."""


def ruled(**more: Any) -> Charter:
    return charter(voting={"window_s": 60, "rules": (RULE,), "officers": ("coop",), **more})


def motion(
    opening: Opening, member: str, what: str, *, reason: str = "-", nonce: int = 0, **more: Any
) -> bytes:
    fields = {
        "consortium": "demo",
        "proposal": opening.proposal,
        "member": member,
        "motion": what,
        "reason": reason,
    }
    note = Motion(**{**fields, "nonce": f"{nonce:016x}", **more})
    return signer(member).sign(note.text)


def queued(chamber: Chamber) -> Opening:
    """The default proposal, proposed, voted by all and queued."""
    opening = chamber.propose(effective_round=1)
    chamber.now_ms = opening.opened_ms
    chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    return opening


def state(chamber: Chamber, opening: Opening) -> str:
    return chamber.proposals.items[opening.proposal].state(chamber.now_ms)


def refused(chamber: Chamber, note: bytes, why: str) -> None:
    answer = chamber.try_submit(note)
    assert isinstance(answer, Refusal) and why in answer.message, answer


def test_from_pending_to_executed_each_at_its_time() -> None:
    chamber = Chamber(ruled())
    opening = chamber.propose(effective_round=1)
    assert (opening.opened_ms, opening.closes_ms) == (START_MS + MINUTE_MS, START_MS + 3 * MINUTE_MS)
    assert state(chamber, opening) == "pending"
    refused(chamber, sign(ballot(opening, "acme", "for")), "it is pending")
    chamber.now_ms = opening.opened_ms
    assert state(chamber, opening) == "active"
    chamber.vote(opening, acme="for", beta="for")
    assert chamber.close() == []
    chamber.now_ms = opening.closes_ms
    assert state(chamber, opening) == "succeeded"
    chamber.close()
    assert state(chamber, opening) == "queued"
    eta_ms = chamber.now_ms + MINUTE_MS
    chamber.now_ms = eta_ms - 1
    assert chamber.execute() == [], "executed early"
    chamber.now_ms = eta_ms
    assert len(chamber.execute()) == 2
    assert state(chamber, opening) == "executed"
    assert chamber.execute() == [], "executed twice"


def test_queued_for_too_long_it_expires_and_is_never_carried_out() -> None:
    chamber = Chamber(ruled())
    opening = queued(chamber)
    chamber.now_ms += 3 * MINUTE_MS - 1
    assert state(chamber, opening) == "queued"
    chamber.now_ms += 1
    assert state(chamber, opening) == "expired"
    assert chamber.execute(99) == []


def test_the_proposer_withdraws_while_it_is_pending_and_nobody_else() -> None:
    chamber = Chamber(ruled())
    opening = chamber.propose(effective_round=1)
    refused(chamber, motion(opening, "beta", "withdraw"), "only acme")
    forged = motion(opening, "acme", "withdraw").replace("— acme ".encode(), "— beta ".encode())
    refused(chamber, forged, "not signed by acme")
    chamber.submit(motion(opening, "acme", "withdraw"))
    assert state(chamber, opening) == "cancelled"
    chamber.now_ms = opening.opened_ms
    refused(chamber, sign(ballot(opening, "acme", "for")), "it is cancelled")
    chamber.now_ms = opening.closes_ms
    assert chamber.close() == chamber.execute() == []
    assert chamber.propose(effective_round=1, nonce="11" * 16).number == 2, (
        "the same wish may be proposed again"
    )


def test_once_voting_has_begun_nothing_is_withdrawn() -> None:
    chamber = Chamber(ruled())
    opening = chamber.propose(effective_round=1)
    chamber.now_ms = opening.opened_ms
    refused(chamber, motion(opening, "acme", "withdraw"), "it is active")


def test_two_members_stop_the_vote_for_a_discussion_once() -> None:
    chamber = Chamber(ruled())
    opening = chamber.propose(effective_round=1)
    refused(chamber, motion(opening, "acme", "discuss"), "it is pending")
    chamber.now_ms = opening.opened_ms
    chamber.submit(motion(opening, "acme", "discuss"))
    assert state(chamber, opening) == "active"
    chamber.submit(motion(opening, "beta", "discuss"))
    assert state(chamber, opening) == "paused"
    refused(chamber, sign(ballot(opening, "coop", "for")), "it is paused")
    refused(chamber, motion(opening, "coop", "resume"), "who called")
    chamber.now_ms += MINUTE_MS
    chamber.submit(motion(opening, "acme", "resume", nonce=1))
    assert state(chamber, opening) == "active"
    (view,) = chamber.proposals.views(chamber.now_ms)
    assert view.closes_ms == opening.closes_ms + MINUTE_MS
    refused(chamber, motion(opening, "coop", "discuss"), "for discussion once")
    refused(chamber, motion(opening, "acme", "resume", nonce=2), "it is active")


def test_an_officer_vetoes_with_a_reason_while_it_is_queued() -> None:
    chamber = Chamber(ruled())
    opening = chamber.propose(effective_round=1)
    refused(chamber, motion(opening, "coop", "veto", reason="No."), "it is pending")
    chamber = Chamber(ruled())
    opening = queued(chamber)
    refused(chamber, motion(opening, "beta", "veto", reason="No."), "no safety officer")
    refused(chamber, motion(opening, "coop", "veto"), "gives its reason")
    chamber.submit(motion(opening, "coop", "veto", reason="It would diverge."))
    assert state(chamber, opening) == "vetoed"
    chamber.now_ms += MINUTE_MS
    assert chamber.execute() == []


def test_veto_abuse_is_overridden_by_the_members_and_final() -> None:
    chamber = Chamber(ruled())
    opening = queued(chamber)
    lift = {"feature": "override-veto", "parameters": {"proposal": opening.proposal}, "effective_round": 1}
    refused(chamber, sign(proposal(chamber.charter, **lift)), "no veto to lift: that proposal is queued")
    chamber.submit(motion(opening, "coop", "veto", reason="I do not like it."))
    override = chamber.propose(**lift)
    assert (override.share, override.members) == ("2/3", "2/3")
    chamber.vote(override, acme="for", beta="for", coop="against")
    chamber.close()
    assert state(chamber, opening) == "queued"
    assert state(chamber, override) == "succeeded"
    refused(chamber, motion(opening, "coop", "veto", reason="Again.", nonce=1), "not again after an override")
    chamber.now_ms += MINUTE_MS
    assert [chamber.journal.record(i).kind for i in chamber.execute()] == [Kind.EXECUTION, Kind.CHARTER]


def test_an_override_that_is_lost_lifts_nothing() -> None:
    chamber = Chamber(ruled())
    opening = queued(chamber)
    chamber.submit(motion(opening, "coop", "veto", reason="It would diverge."))
    lift = {"feature": "override-veto", "parameters": {"proposal": opening.proposal}, "effective_round": 1}
    override = chamber.propose(**lift)
    chamber.vote(override, acme="for", beta="against", coop="against")
    chamber.close()
    assert (state(chamber, override), state(chamber, opening)) == ("defeated", "vetoed")


def test_who_has_no_vote_on_it_cannot_stop_it_for_a_discussion() -> None:
    chamber = Chamber()
    wish = {"feature": "member-suspend", "parameters": {"name": "beta", "reason": "Silent."}}
    opening = chamber.propose(**wish)
    refused(chamber, motion(opening, "beta", "discuss"), "not in its electorate")
    assert chamber.proposals.items[opening.proposal].vetoed_ms is None


def test_the_next_moment_is_the_end_of_a_vote_or_of_a_queue() -> None:
    chamber = Chamber(ruled())
    assert chamber.proposals.next_moment_ms(chamber.now_ms) is None
    opening = queued(chamber)
    assert chamber.proposals.next_moment_ms(chamber.now_ms) == chamber.now_ms + MINUTE_MS
    later = chamber.propose(effective_round=1, nonce="11" * 16, parameters={"steps": 30})
    assert chamber.proposals.next_moment_ms(opening.opened_ms + 2 * MINUTE_MS) == later.closes_ms


def test_after_its_time_a_veto_comes_too_late() -> None:
    chamber = Chamber(ruled())
    opening = queued(chamber)
    chamber.now_ms += MINUTE_MS
    refused(chamber, motion(opening, "coop", "veto", reason="Late."), "its time for vetoes is over")


def test_a_motion_of_another_consortium_on_nothing_or_by_a_stranger_is_refused() -> None:
    chamber = Chamber(ruled())
    opening = chamber.propose(effective_round=1)
    refused(chamber, motion(opening, "zeta", "discuss"), "was no member")
    refused(chamber, motion(opening, "acme", "withdraw", consortium="other"), "was no member")
    refused(
        chamber, motion(opening, "acme", "withdraw", proposal="sha256:" + "0" * 64), "there is no proposal"
    )
    note = motion(opening, "acme", "withdraw")
    chamber.submit(note)
    assert chamber.try_submit(note) == [], "a repeat adds nothing"


@pytest.mark.parametrize("what", ["stale", "failed"])
def test_a_success_whose_ground_is_gone_ends_without_a_trace_in_the_charter(what: str) -> None:
    chamber = Chamber()
    wish: dict[str, Any] = {"feature": "grant", "parameters": {"name": "g", "member": "coop", "amount": 5}}
    first = chamber.propose(**(wish if what == "failed" else {}))
    second = chamber.propose(**(wish if what == "failed" else {"parameters": {"steps": 30}}), proposer="beta")
    for opening in (first, second):
        chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    chamber.execute()
    assert (state(chamber, first), state(chamber, second)) == ("executed", what)
    assert chamber.charter.version == 2
