"""The life of a proposal follows from the journal and its time alone, and no state is left for one it does not lead to.

The machine carries the rules that are published for OpenZeppelin's TimelockController (Certora: `stateConsistency`,
`stateTransition`, `schedule`, `execute`, `cancel`) and Governor (`startBeforeEnd`, `immutableFieldsAfterProposalCreation`,
`noBothExecutedAndCanceled`, `executionOnlyIfQuorumReachedAndVoteSucceeded`, `noVoteOutsideTheWindow`, `doubleVoting`,
`allFunctionsRevertIfExecuted`, `allFunctionsRevertIfCanceled`), in our words.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from commons.charter import Charter
from commons.course import ENDED, State
from commons.errors import Refusal
from commons.motions import Motion
from commons.opening import Opening
from commons.records import Kind
from tests.support.chamber import MEMBERS, START_MS, Chamber, ballot, charter, proposal, sign, signer

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


def test_every_state_has_its_successors_and_those_that_end_have_none() -> None:
    assert set(NEXT) == set(get_args(State))
    assert {s for s, after in NEXT.items() if not after} == set(ENDED)


class Timelock(RuleBasedStateMachine):
    """Members, an officer, the operator's rounds and the clock do what they like; after each step the rules hold."""

    @initialize()
    def found(self) -> None:
        self.chamber = Chamber(ruled())
        self.opening = self.chamber.propose(effective_round=2)
        self.before = self.now = "pending"
        self.versions = [self.chamber.charter.version]
        self.turn = 0
        self.executions = 0

    def _act(self, note: bytes) -> None:
        """allFunctionsRevertIfExecuted, allFunctionsRevertIfCanceled: nothing more is taken of what has ended."""
        held = state(self.chamber, self.opening)
        answer = self.chamber.try_submit(note)
        if not isinstance(answer, Refusal):
            assert not answer or held not in ENDED, f"it is {held} and took {answer[0].kind}"
            self.chamber.take(answer)
        self._step()

    def _step(self) -> None:
        self.before, self.now = self.now, state(self.chamber, self.opening)
        self.turn += 1

    @rule(seconds=st.sampled_from((1, 29, 30, 59, 60, 61, 119, 120, 400)))
    def time_passes(self, seconds: int) -> None:
        self.chamber.now_ms += 1000 * seconds
        self._step()

    @rule(voter=st.sampled_from(MEMBERS), choice=st.sampled_from(("for", "for", "against", "abstain")))
    def vote(self, voter: str, choice: Any) -> None:
        self._act(sign(ballot(self.opening, voter, choice, nonce=f"{self.turn:016x}")))

    @rule(member=st.sampled_from(MEMBERS), what=st.sampled_from(("withdraw", "discuss", "resume", "veto")))
    def move(self, member: str, what: str) -> None:
        self._act(motion(self.opening, member, what, reason="Because.", nonce=self.turn))

    @precondition(lambda self: self.now == "vetoed")
    @rule(against=st.booleans())
    def override(self, against: bool) -> None:
        note = proposal(
            self.chamber.charter, feature="override-veto", parameters={"proposal": self.opening.proposal},
            nonce=f"{self.turn:016x}", effective_round=1,
        )  # fmt: skip
        answer = self.chamber.try_submit(sign(note))
        if not isinstance(answer, Refusal):
            indices = self.chamber.take(answer)
            opened = Opening.from_facts(self.chamber.journal.record(indices[-1]).facts)
            self.chamber.vote(opened, acme="for", beta="against" if against else "for", coop="against")
            self.chamber.close()
        self._step()

    @rule()
    def close(self) -> None:
        """schedule: only what succeeded is queued."""
        held = state(self.chamber, self.opening)
        closed = [self.chamber.journal.record(i).facts for i in self.chamber.close()]
        if any(f["proposal"] == self.opening.proposal for f in closed):
            assert held in ("succeeded", "defeated"), f"decided while {held}"
        self._step()

    @rule(round_number=st.sampled_from((1, 2, 3)))
    def execute(self, round_number: int) -> None:
        """execute: queued and due, in its round; once; and to exactly what was voted."""
        item = self.chamber.proposals.items[self.opening.proposal]
        held, due, now_ms = state(self.chamber, self.opening), item.eta_ms, self.chamber.now_ms
        if self.chamber.execute(round_number):
            assert held == "queued" and due is not None and now_ms >= due and round_number >= 2
            assert self.chamber.charter.learning.inner_steps == 20
            self.executions += 1
        self._step()

    @invariant()
    def state_transition(self) -> None:
        """stateTransition: from each state only to what it leads to, and never back."""
        if self.turn and self.before != self.now:
            reached = {self.before}
            for _ in NEXT:  # time may pass several at once
                reached |= {after for s in reached for after in NEXT[s]}  # type: ignore[index]
            assert self.now in reached, f"{self.before} became {self.now}"
            assert self.before not in ENDED, f"{self.before} is the end and became {self.now}"

    @invariant()
    def state_consistency(self) -> None:
        """stateConsistency: the state and what it says agree; the charter has changed if and only if it was executed."""
        item = self.chamber.proposals.items[self.opening.proposal]
        now = state(self.chamber, self.opening)
        assert (now == "executed") == (self.executions == 1) == (self.chamber.charter.version == 2)
        assert (now in ("queued", "vetoed", "expired", "executed")) == (item.eta_ms is not None)
        if now == "pending":
            assert self.chamber.now_ms < self.opening.opened_ms and not item.ballots
        if now == "active":
            assert self.opening.opened_ms <= self.chamber.now_ms < item.tally(self.chamber.now_ms).closes_ms

    @invariant()
    def cancel(self) -> None:
        """cancel: only while pending, and what is cancelled gathers neither ballots nor an outcome."""
        item = self.chamber.proposals.items[self.opening.proposal]
        if item.cancelled:
            assert not item.ballots and item.decided is None and self.executions == 0

    @invariant()
    def governor(self) -> None:
        """startBeforeEnd, immutableFieldsAfterProposalCreation, noBothExecutedAndCanceled."""
        item = self.chamber.proposals.items[self.opening.proposal]
        assert item.opening.opened_ms < item.opening.closes_ms
        recorded = self.chamber.journal.record(item.evidence[1]).facts
        assert item.opening == self.opening == Opening.from_facts(recorded)
        assert not (item.cancelled and item.ended)

    @invariant()
    def counting(self) -> None:
        """noVoteOutsideTheWindow, doubleVoting, executionOnlyIfQuorumReachedAndVoteSucceeded."""
        item, now_ms = self.chamber.proposals.items[self.opening.proposal], self.chamber.now_ms
        count, electorate = item.tally(now_ms), self.opening.electorate
        at = {index: at_ms for index, at_ms, _ in item.ballots}
        assert not count.stray and set(count.counted) <= set(electorate)
        assert all(
            self.opening.opened_ms <= at[index] < count.closes_ms for _, index in count.counted.values()
        )
        assert count.turnout_weight == sum(electorate[voter] for voter in count.counted)
        if item.ended == "executed":
            assert count.turnout_weight * 100 >= 60 * count.total_weight
            assert count.for_weight > count.against_weight

    @invariant()
    def the_window_is_at_most_what_pause_and_extension_allow(self) -> None:
        item = self.chamber.proposals.items[self.opening.proposal]
        most = self.opening.closes_ms + 2 * self.opening.window_ms
        assert item.tally(self.chamber.now_ms).closes_ms <= max(most, self.chamber.now_ms)


TestTimelock = Timelock.TestCase
TestTimelock.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
