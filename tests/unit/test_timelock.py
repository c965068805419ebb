"""No state of a proposal is left for one it does not lead to, whatever members, officers, rounds and the clock do.

The machine carries the formal rules that are published for OpenZeppelin's contracts (`certora/specs` of openzeppelin-contracts)
over to a proposal's life, by their names:

- TimelockController: unsetPendingTransition, pendingCancelledTransition, readyDoneTransition, doneToNothingTransition,
  scheduleCheck, cooldown, cannotCallExecute, cancelledNotExecuted, onlyProposer, minDelayOnlyChange, and scheduleChange,
  executeChange, cancelChange (what is done to one proposal does nothing to another);
- Governor: voteStartBeforeVoteEnd, noStartBeforeCreation, immutableFieldsAfterProposalCreation, noDoublePropose, noDoubleVoting,
  noBothExecutedAndCanceled, noExecuteBeforeDeadline, executionOnlyIfQuoromReachedAndVoteSucceeded, stateTransitionFn,
  stateTransitionWait, stateIsConsistentWithVotes, allFunctionsRevertIfExecuted, allFunctionsRevertIfCanceled;
- GovernorPreventLateQuorum: deadlineChangeEffects, cantExtendWhenQuorumUnreached, hasVotedCorrelationNonzero.

Two hold in another form. A ballot may be changed while the vote goes on, so noDoubleVoting is that a voter counts once, and a category
falls only by a ballot that is changed. Ballots against count for the quorum here, so againstVotesDontCount has no counterpart.
"""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from commons.course import ENDED, State
from commons.errors import Code, Refusal
from commons.opening import Opening
from governance.courses import Item
from tests.support.chamber import MEMBERS, Chamber, ballot, proposal, sign, signer
from tests.unit.test_course import RULE, motion, ruled, state

QUEUE_MS, EXTEND_MS = 1000 * RULE["queue_s"], 1000 * RULE["extend_s"]
BY_RECORD: dict[State, set[State]] = {
    "pending": {"cancelled"},
    "active": {"paused", "succeeded", "defeated"},
    "paused": {"active"},
    "succeeded": {"queued"},
    "defeated": set(),
    "queued": {"vetoed", "executed", "stale", "failed"},
    "vetoed": {"queued"},
}
"""What a state may become by a note or a decision, at one and the same time (stateTransitionFn)."""
BY_TIME: dict[State, set[State]] = {
    "pending": {"active"},
    "active": {"succeeded", "defeated"},
    "paused": {"active"},
    "queued": {"expired"},
    "vetoed": {"expired"},
}
"""What a state may become by waiting, at the next step or after several (stateTransitionWait)."""


class Timelock(RuleBasedStateMachine):
    """A proposal, and another beside it that nobody votes on."""

    @initialize(stage=st.sampled_from(("pending", "active", "succeeded", "queued", "queued")))
    def found(self, stage: str) -> None:
        """As far as `stage`, by the rules that follow."""
        self.chamber = Chamber(ruled())
        self.other = self.chamber.propose(parameters={"steps": 30}, nonce="ff" * 16, effective_round=9)
        self.opening = self.chamber.propose(effective_round=2)
        self.turn = self.executions = 0
        self.voted: set[str] = set()
        self.deadline = self.opening.closes_ms
        while self.now != stage:
            if self.now == "active" and not self.voted:
                self.most_vote_for_it()
            elif self.now == "succeeded":
                self.close()
            else:
                self.its_next_moment_comes(0)

    @property
    def item(self) -> Item:
        return self.chamber.proposals.items[self.opening.proposal]

    @property
    def now(self) -> str:
        return state(self.chamber, self.opening)

    def _act(self, note: bytes) -> bool:
        """allFunctionsRevertIfExecuted, allFunctionsRevertIfCanceled: nothing more is taken of what has ended."""
        before, beside = self.now, state(self.chamber, self.other)
        answer = self.chamber.try_submit(note)
        if not isinstance(answer, Refusal):
            assert not answer or before not in ENDED, f"it is {before} and took {answer[0].kind}"
            self.chamber.take(answer)
        self._changed(before, beside)
        return not isinstance(answer, Refusal)

    def _changed(self, before: str, beside: str) -> None:
        """stateTransitionFn; scheduleChange, executeChange, cancelChange: the other proposal is as it was."""
        self.turn += 1
        assert self.now == before or self.now in BY_RECORD[before], f"{before} became {self.now}"  # type: ignore[index]
        assert state(self.chamber, self.other) == beside

    @rule(seconds=st.sampled_from((1, 29, 30, 59, 61, 119)))
    def time_passes(self, seconds: int) -> None:
        self._wait_until(self.chamber.now_ms + 1000 * seconds)

    @rule(early=st.sampled_from((0, 0, 1, 10_000)))
    def its_next_moment_comes(self, early: int) -> None:
        """The clock stands at the moment at which something may begin or end, or just before."""
        item, now_ms = self.item, self.chamber.now_ms
        moments = [self.opening.opened_ms, item.tally(now_ms).closes_ms]
        if item.eta_ms:
            moments += [item.eta_ms, item.eta_ms + 1000 * RULE["grace_s"]]
        self._wait_until(min((ms - early for ms in moments if ms - early > now_ms), default=now_ms + 1))

    def _wait_until(self, ms: int) -> None:
        """stateTransitionWait, doneToNothingTransition."""
        before = self.now
        self.chamber.now_ms = ms
        reached = {before}
        for _ in BY_TIME:
            reached |= {after for s in reached for after in BY_TIME.get(s, ())}  # type: ignore[call-overload]
        assert self.now in reached, f"{before} became {self.now}"

    @rule()
    def most_vote_for_it(self) -> None:
        for voter in MEMBERS[:2]:
            self.vote(voter, "for")

    @rule(early=st.sampled_from((0, 1)))
    def a_round_begins_when_it_is_due(self, early: int) -> None:
        if (due := self.item.eta_ms) is not None and due - early > self.chamber.now_ms:
            self._wait_until(due - early)
        self.execute(2)

    @rule(voter=st.sampled_from(MEMBERS), choice=st.sampled_from(("for", "for", "against", "abstain")))
    def vote(self, voter: str, choice: Any) -> None:
        """hasVotedCorrelationNonzero: the first ballot of a voter adds its weight to one category and takes from none."""
        held, before = self.now, self._weights()
        taken = self._act(sign(ballot(self.opening, voter, choice, nonce=f"{self.turn:016x}")))
        assert not taken or held == "active", f"a ballot was taken while {held}"
        if taken and voter not in self.voted:
            more = {c: after - before[c] for c, after in self._weights().items()}
            assert more == {c: self.opening.electorate[voter] * (c == choice) for c in before}
            self.voted.add(voter)

    def _weights(self) -> dict[str, int]:
        count = self.item.tally(self.chamber.now_ms)
        return {"for": count.for_weight, "against": count.against_weight, "abstain": count.abstain_weight}

    @rule(
        member=st.sampled_from(MEMBERS),
        what=st.sampled_from(("discuss", "resume", "discuss", "resume", "veto", "veto", "withdraw")),
    )
    def move(self, member: str, what: str) -> None:
        """pendingCancelledTransition: by a withdrawal of its proposer alone."""
        before = self.now
        self._act(motion(self.opening, member, what, reason="Because.", nonce=self.turn))
        if self.now == "cancelled" != before:
            assert (member, what, before) == ("acme", "withdraw", "pending")

    @rule(by=st.sampled_from((*MEMBERS, "zeta")))
    def propose_it_again(self, by: str) -> None:
        """noDoublePropose: the same words make no second proposal. onlyProposer: a stranger's make none at all."""
        note = proposal(self.chamber.founding, effective_round=2, proposer=by)
        items = len(self.chamber.proposals.items)
        if by == "acme":
            assert self.chamber.try_submit(sign(note)) == []
        elif by == "zeta":
            answer = self.chamber.try_submit(signer("zeta").sign(note.compose()))
            assert isinstance(answer, Refusal) and answer.code is Code.NOT_AUTHORISED
        else:
            forged = self.chamber.try_submit(signer("acme").sign(note.compose()))
            assert isinstance(forged, Refusal) and forged.code is Code.SIGNATURE_INVALID
        assert len(self.chamber.proposals.items) == items

    @rule(against=st.booleans())
    def a_veto_is_overridden(self, against: bool) -> None:
        note = proposal(
            self.chamber.charter, feature="override-veto", parameters={"proposal": self.opening.proposal},
            nonce=f"{self.turn:016x}", effective_round=1,
        )  # fmt: skip
        before, beside = self.now, state(self.chamber, self.other)
        answer = self.chamber.try_submit(sign(note))
        if not isinstance(answer, Refusal):
            indices = self.chamber.take(answer)
            opened = Opening.from_facts(self.chamber.journal.record(indices[-1]).facts)
            self.chamber.vote(opened, acme="for", beta="against" if against else "for", coop="against")
            self.chamber.close()
        self._changed(before, beside if beside != "defeated" else state(self.chamber, self.other))

    @rule()
    def close(self) -> None:
        """unsetPendingTransition, scheduleCheck: only what succeeded is queued, for as long as the rule says."""
        held, beside, decided = self.now, state(self.chamber, self.other), self.item.decided
        self.chamber.close()
        if self.item.decided != decided:
            assert held in ("succeeded", "defeated"), f"decided while {held}"
            if held == "succeeded":
                assert self.item.eta_ms == self.chamber.now_ms + QUEUE_MS
        self._changed(held, beside)

    @rule(round_number=st.sampled_from((1, 2, 3)))
    def execute(self, round_number: int) -> None:
        """readyDoneTransition, cannotCallExecute, cooldown, noExecuteBeforeDeadline: queued and due, in its round, once, and to
        exactly what was voted."""
        held, beside, due, now_ms = (
            self.now,
            state(self.chamber, self.other),
            self.item.eta_ms,
            self.chamber.now_ms,
        )
        decided, deadline = self.item.decided, self.item.tally(now_ms).closes_ms
        if self.chamber.execute(round_number):
            assert held == "queued" and due is not None and now_ms >= due and round_number >= 2
            assert decided and now_ms - decided[0] >= QUEUE_MS
            complete = len(self.item.tally(now_ms).counted) == len(MEMBERS)
            assert deadline <= decided[0] or complete, "carried out before its vote was over"
            assert self.chamber.charter.learning.inner_steps == 20
            self.executions += 1
        self._changed(held, beside)

    @invariant()
    def state_consistency(self) -> None:
        """stateIsConsistentWithVotes; the charter has changed if and only if it was executed (cancelledNotExecuted,
        minDelayOnlyChange)."""
        item, now = self.item, self.now
        count = item.tally(self.chamber.now_ms)
        assert (now == "executed") == (self.executions == 1) == (self.chamber.charter.version == 2)
        assert self.chamber.charter.voting == self.chamber.founding.voting
        assert (now in ("queued", "vetoed", "expired", "executed")) == (item.eta_ms is not None)
        won = (
            count.turnout_weight * 100 >= RULE["quorum_percent"] * count.total_weight
            and count.for_weight > count.against_weight
        )
        if now == "pending":
            assert self.chamber.now_ms < self.opening.opened_ms and not item.ballots
        if now == "active":
            assert self.opening.opened_ms <= self.chamber.now_ms < count.closes_ms
        if now in ("succeeded", "defeated"):
            assert won == (now == "succeeded")
        if now == "executed":
            assert won, "executionOnlyIfQuoromReachedAndVoteSucceeded"

    @invariant()
    def cancel(self) -> None:
        """pendingCancelledTransition: what is cancelled gathers neither ballots nor an outcome; noBothExecutedAndCanceled."""
        if self.item.cancelled:
            assert not self.item.ballots and self.item.decided is None and not self.executions

    @invariant()
    def fields(self) -> None:
        """voteStartBeforeVoteEnd, noStartBeforeCreation, immutableFieldsAfterProposalCreation."""
        item = self.item
        recorded = self.chamber.journal.record(item.evidence[1])
        proposed = self.chamber.journal.record(item.evidence[0])
        assert proposed.at_ms <= item.opening.opened_ms < item.opening.closes_ms
        assert item.opening == self.opening == Opening.from_facts(recorded.facts)
        assert item.proposer == "acme"

    @invariant()
    def counting(self) -> None:
        """noDoubleVoting: a voter counts once, by a ballot within the window."""
        count, electorate = self.item.tally(self.chamber.now_ms), self.opening.electorate
        at = {index: at_ms for index, at_ms, _ in self.item.ballots}
        assert not count.stray and set(count.counted) <= set(electorate)
        assert all(
            self.opening.opened_ms <= at[index] < count.closes_ms for _, index in count.counted.values()
        )
        assert count.turnout_weight == sum(electorate[voter] for voter in count.counted)

    @invariant()
    def deadline_change_effects(self) -> None:
        """deadlineChangeEffects, cantExtendWhenQuorumUnreached: the end never comes nearer, and moves for a discussion, which
        lasts at most a window, and for one late quorum."""
        count = self.item.tally(self.chamber.now_ms)
        assert count.closes_ms >= self.deadline
        self.deadline = count.closes_ms
        paused = self.opening.window_ms if count.discussed else 0
        quorum = count.turnout_weight * 100 >= RULE["quorum_percent"] * count.total_weight
        assert count.closes_ms <= self.opening.closes_ms + paused + (EXTEND_MS if quorum else 0)


def test_every_state_is_known_and_those_that_end_lead_nowhere() -> None:
    assert set(BY_RECORD) | set(BY_TIME) | set(ENDED) == set(get_args(State))
    assert not {s for s in ENDED if BY_RECORD.get(s) or BY_TIME.get(s)}


TestTimelock = Timelock.TestCase
TestTimelock.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
