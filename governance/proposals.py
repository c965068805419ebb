"""Proposals from note to charter: what may be submitted, when a vote is decided, what is carried out.

A view of the journal (`governance.courses`). The rules themselves stand in `commons` (ballots, tally, course, features),
because every site applies them to the proof as well (`commons.chain`); here they meet the log's clock and order.
"""

from __future__ import annotations

from collections.abc import Callable

from commons import ballots, charter_file, features, notes
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.delegating import check_ballot_key, open_ballot
from commons.errors import Code, Refusal
from commons.motions import BallotKey, Motion
from commons.names import ProposalId
from commons.notes import Note, NoteError, Verifier
from commons.opening import Opening
from commons.records import Kind, Record, fact
from commons.signed import open_signed, text_digest
from commons.tally import fits, outcome_facts
from commons.views import ProposalView
from governance.courses import Courses, Item
from governance.pledging import decide_payments, decide_returns
from governance.proposal_views import label, proposal_view

__all__ = ["NOTES", "Proposals", "label"]

NOTES = (Proposal.KIND, Proposal.WITH_NEEDS, Ballot.KIND, Ballot.WITH_REASON, Motion.KIND, BallotKey.KIND)
"""What `Proposals.decide_submit` takes."""


class Proposals(Courses):
    """Changes only by `apply`; the `decide_` methods change nothing."""

    def decide_submit(self, note: bytes, charter: Charter, now_ms: int) -> list[Record] | Refusal:
        """Records for a signed note of `NOTES`; [] for a repeat (see `find`). A proposal is recorded with its opening.

        `charter` is the one in force. Refused without a trace when it may not stand.
        """
        takers: dict[str, Callable[[Note, Charter, int], list[Record] | Refusal]] = {
            Proposal.KIND: self._submit_proposal,
            Proposal.WITH_NEEDS: self._submit_proposal,
            Ballot.KIND: self._submit_ballot,
            Ballot.WITH_REASON: self._submit_ballot,
            Motion.KIND: self._submit_motion,
            BallotKey.KIND: self._submit_ballot_key,
        }
        try:
            parsed = notes.parse(note)
            kind = ballots.kind(parsed)
            if kind in takers:
                return takers[kind](parsed, charter, now_ms)
            message = f"the note is a {kind[:60]!r}, the chamber takes {', '.join(NOTES)}"
            return Refusal(Code.NOTE_MALFORMED, message)
        except NoteError as error:
            return Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")

    def _submit_proposal(self, note: Note, charter: Charter, now_ms: int) -> list[Record] | Refusal:
        proposal = Proposal.from_note(note)
        if proposal.consortium != charter.consortium.name:
            return Refusal(
                Code.REQUEST_INVALID,
                f"the proposal is for consortium {proposal.consortium!r}, this is {charter.consortium.name!r}",
            )
        member = charter.member(proposal.proposer)
        if member is None or member.suspended:
            what = "is suspended" if member else "is no member"
            return Refusal(Code.NOT_AUTHORISED, f"{proposal.proposer!r} {what}, and only members propose")
        wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
        if wrong:
            return wrong
        if self.known(text_digest(note)):
            return []
        if self.bases.get(proposal.charter) != len(self.charters) - 1:
            return Refusal(
                Code.PROPOSAL_STALE,
                f"it was written on charter {proposal.charter}, version {charter.version} is in force now; "
                f"{member.name} looks at that one and proposes again",
            )
        words = (charter, proposal.feature, proposal.parameters)
        wrong = features.check(*words) or features.may_not_propose(*words, member.name)
        wrong = wrong or self._idle(proposal, now_ms)
        if wrong:
            return wrong
        opening = Opening.of(
            proposal,
            charter,
            number=len(self.items) + 1,
            now_ms=now_ms,
            contributed=self.contributed(charter, now_ms),
            dormant=self.dormancy.members,
        )
        assert opening.electorate, "a charter in which nobody could vote on it would be refused"
        return [
            Record(Kind.PROPOSAL, now_ms, note.data),
            fact(Kind.OPENING, now_ms, **opening.facts),
        ]

    def _idle(self, proposal: Proposal, now_ms: int) -> Refusal | None:
        """Why there is nothing to vote on: the same is open, or there is no veto to lift."""
        twin = next((i for i in self._undecided() if _same(i.proposal, proposal)), None)
        if twin:
            return Refusal(
                Code.PROPOSAL_EXISTS,
                f"{proposal.proposer} has this very proposal open as {label(twin.opening.number)}",
                {"proposal": twin.opening.proposal},
            )
        if proposal.needs_micro and not features.FEATURES[proposal.feature].binding:
            message = f"{proposal.feature} changes no charter: there is nothing that pledges could pay for"
            return Refusal(Code.REQUEST_INVALID, message)
        if proposal.feature != features.OVERRIDE:
            return None
        target = self.items.get(ProposalId(proposal.parameters["proposal"]))
        state = target.state(now_ms) if target else "unknown"
        if state == "vetoed":
            return None
        return Refusal(Code.PROPOSAL_CLOSED, f"there is no veto to lift: that proposal is {state}")

    def _submit_ballot(self, note: Note, charter: Charter, now_ms: int) -> list[Record] | Refusal:
        ballot = Ballot.from_note(note)
        item = self.items.get(ballot.proposal)
        if item is None:
            return _no_such(ballot.proposal)
        opening, name = item.opening, label(item.opening.number)
        if ballot.consortium != opening.consortium:
            return Refusal(
                Code.BALLOT_MISMATCH,
                f"the ballot is for consortium {ballot.consortium!r}, this is {opening.consortium!r}",
            )
        member = self.charters[self.bases[opening.charter]].member(ballot.voter)
        if member is None or ballot.voter not in opening.electorate:
            return Refusal(
                Code.NOT_IN_ELECTORATE, f"{ballot.voter!r} was not in the electorate when {name} opened"
            )
        wrong = open_ballot(note, member, self.ballot_keys.get(member.name), now_ms)
        if wrong:
            return wrong
        if self.known(text_digest(note)):
            return []
        for what, theirs, ours in (
            ("rules", ballot.rules, opening.rules_digest),
            ("electorate", ballot.electorate, opening.electorate_digest),
        ):
            if theirs != ours:
                return Refusal(
                    Code.BALLOT_MISMATCH,
                    f"the ballot names {what} {theirs}, {name} is voted under {ours}; {member.name} reads the "
                    "proposal again and votes again",
                )
        if not fits(opening, ballot):
            asked = (
                f"an order of {', '.join(opening.candidates)}"
                if opening.candidates
                else "for, against or abstain"
            )
            return Refusal(
                Code.BALLOT_MISMATCH, f"{name} asks for {asked}, the ballot says {ballot.choice!r}"
            )
        state = item.state(now_ms)
        if state != "active":
            return Refusal(
                Code.PROPOSAL_CLOSED,
                f"{name} takes no ballots now: it is {state}, its window is over, or all have voted",
            )
        return [Record(Kind.BALLOT, now_ms, note.data)]

    def _submit_motion(self, note: Note, charter: Charter, now_ms: int) -> list[Record] | Refusal:
        motion = Motion.from_note(note)
        item = self.items.get(ProposalId(motion.proposal))
        if item is None:
            return _no_such(motion.proposal)
        member = self.charters[self.bases[item.opening.charter]].member(motion.member)
        if member is None or motion.consortium != item.opening.consortium:
            return Refusal(
                Code.NOT_AUTHORISED,
                f"{motion.member!r} of {motion.consortium!r} was no member when it opened",
            )
        wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
        if wrong:
            return wrong
        if self.known(text_digest(note)):
            return []
        if why := item.refuses(motion, now_ms):
            return Refusal(Code.PROPOSAL_CLOSED, f"{label(item.opening.number)}: {why}")
        return [Record(Kind.MOTION, now_ms, note.data)]

    def _submit_ballot_key(self, note: Note, charter: Charter, now_ms: int) -> list[Record] | Refusal:
        found = check_ballot_key(note, charter)
        if isinstance(found, Refusal):
            return found
        return [] if self.known(text_digest(note)) else [Record(Kind.BALLOT_KEY, now_ms, note.data)]

    def decide_close(self, now_ms: int) -> list[Record]:
        """An OUTCOME for each open proposal that is decided by now, in the order they were opened; then what of pledges goes
        back to who made them."""
        records = []
        for item in self._undecided():
            count = item.tally(now_ms)
            if count.phase == "closed":
                records.append(fact(Kind.OUTCOME, now_ms, **outcome_facts(item.opening, count)))
        return records + [back for item in self.items.values() for back in decide_returns(item, now_ms)]

    def decide_execute(
        self, charter: Charter, round_number: int, now_ms: int, *, run: str = ""
    ) -> list[Record]:
        """What becomes law at the start of `round_number` of `run`, empty while none goes on: queued proposals due by then, as they passed.

        Each gives EXECUTION, the next CHARTER and the payment of its pledges; one whose ground has moved gives an OUTCOME
        `stale`, one that no longer applies, or lacks pledges, an OUTCOME `failed`. A proposal leaves the queue by one of them, so that nothing is carried out twice.
        """
        assert not self.charters or charter == self.charters[-1], "execute against the charter in force"
        records: list[Record] = []
        history = list(self.charters)
        for item in (self.items[key] for key in self.passed):
            if item.proposal.effective_round > round_number or not item.ready(now_ms):
                continue
            base = self.bases[item.proposal.charter]
            feature, params = item.proposal.feature, item.proposal.parameters
            changed = features.carry_out(history[base:], feature, params, run=run, round_number=round_number)
            number, key = item.opening.number, item.opening.proposal
            before = charter_file.digest(history[-1])
            if not isinstance(changed, Refusal) and (why := item.lacks(changed, now_ms)):
                changed = Refusal(Code.EXCEEDS_BUDGET, why, {features.FAILED: True})
            if isinstance(changed, Refusal):
                ended = {"proposal": key, "number": number, "charter": before, "round": round_number}
                state = "failed" if features.FAILED in changed.details else "stale"
                records.append(fact(Kind.OUTCOME, now_ms, state=state, why=changed.message, **ended))
                continue
            executed = features.execution_facts(key, number, history[-1], changed, round_number, run)
            records.append(fact(Kind.EXECUTION, now_ms, **executed))
            records.append(Record(Kind.CHARTER, now_ms, charter_file.canonical(changed)))
            records += decide_payments(item, changed, now_ms)
            history.append(changed)
        return records

    def next_moment_ms(self, now_ms: int) -> int | None:
        """When the next open vote ends, as it stands, or a queued proposal may be carried out."""
        moments = [item.tally(now_ms).closes_ms for item in self._undecided()]
        moments += [pledge.expires_ms for item in self.items.values() for pledge in item.open_pledges()]
        etas = [self.items[key].eta_ms for key in self.passed]
        return min([*moments, *(eta for eta in etas if eta is not None and eta > now_ms)], default=None)

    def views(self, now_ms: int | None = None) -> list[ProposalView]:
        """Every proposal, in the order they were opened, at this time or that of the last record."""
        at = self.last_ms if now_ms is None else now_ms
        return [
            proposal_view(item, self.charters[self.bases[item.proposal.charter]], at)
            for item in self.items.values()
        ]

    def _undecided(self) -> list[Item]:
        return [item for item in self.items.values() if item.decided is None and not item.cancelled]


def _no_such(proposal: str) -> Refusal:
    return Refusal(Code.PROPOSAL_UNKNOWN, f"there is no proposal {proposal} in this journal")


def _same(one: Proposal, other: Proposal) -> bool:
    """The same wish of the same member on the same charter; title, nonce and round may differ."""
    keys = ("proposer", "feature", "parameters", "charter")
    return all(getattr(one, key) == getattr(other, key) for key in keys)
