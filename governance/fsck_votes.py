"""The auditor's reading of votes: what was proposed, who voted how, and what was voted into the charter.

Every signature is checked with the key that was in force, every ballot counted again, every charter derived again
from the vote it names; who founded the consortium is `governance.fsck_law`'s. Shares the members' own arithmetic (`commons`), and nothing with the coordinator's views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from commons import charter_file, features, notes
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.course import Course
from commons.delegating import check_ballot_key, open_ballot, unlawful_pause
from commons.dormancy import Dormancy
from commons.errors import Refusal
from commons.lodging import Lodged
from commons.motions import BallotKey, Motion, Pause
from commons.notes import Verifier
from commons.opening import Opening
from commons.records import Kind, Record
from commons.tally import outcome_facts
from governance.fsck_findings import Findings, Rule
from governance.fsck_law import Law
from governance.fsck_power import Contributions


@dataclass(kw_only=True)
class Vote(Course):
    proposal: Proposal
    base: int
    """Position of its charter in the history."""
    made: int | None = None
    """The charter version it became."""


class Votes(Law):
    """Reads GENESIS, CHARTER, FOUNDING, SITE and PAUSE records, and those of votes."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self._contributions = Contributions()
        self._pending: tuple[int, Proposal] | None = None
        self._sound = False
        """What is pending could be carried out."""
        self._votes: dict[str, Vote] = {}
        self._ballot_keys: dict[str, BallotKey] = {}
        self._dormancy = Dormancy()
        self._execution: tuple[int, dict[str, Any]] | None = None

    def vote(self, proposal: str) -> Vote | None:
        """The course of a proposal that was opened."""
        return self._votes.get(proposal)

    def take(self, index: int, record: Record) -> None:
        self._follows(index, record)
        match record.kind:
            case Kind.GENESIS:
                self._genesis(index, record.facts)
            case Kind.CHARTER:
                self._charter(index, record)
            case Kind.FOUNDING:
                self._founding(index, record.body)
            case Kind.SITE:
                self._site(index, record.body)
            case Kind.ANCHOR:
                self._anchor(index, record.body)
            case Kind.PROPOSAL:
                self._propose(index, record.body)
            case Kind.OPENING:
                self._open(index, record)
            case Kind.BALLOT:
                self._ballot(index, record)
            case Kind.MOTION:
                self._motion(index, record)
            case Kind.LODGED:
                self._lodged(index, record.body)
            case Kind.PAUSE:
                self._pause(index, record.body)
            case Kind.BALLOT_KEY:
                self._delegate(index, record.body)
            case Kind.OUTCOME:
                self._outcome(index, record)
            case Kind.EXECUTION:
                self._execute(index, record)
            case Kind.TRANSFER:
                self._contributions.take(record)

    def finish(self, size: int) -> None:
        """After the last record."""
        if size and not self._founded:
            self._check_founders(size - 1, "is the last, and before it")
        if self._execution is not None or self._pending is not None:
            what = "carries a vote out" if self._execution else "proposes"
            at = (self._execution or self._pending or (size, None))[0]
            self._findings.add(Rule.VOTE, at, f"{what}, and the record that must follow it is missing")

    def _follows(self, index: int, record: Record) -> None:
        """What must stand right behind its reason does, and nothing comes between."""
        need = self._findings.require
        need((index == 0) == (record.kind is Kind.GENESIS), Rule.FOUNDING, index, _begins(index))
        if index == 1:
            need(record.kind is Kind.CHARTER, Rule.FOUNDING, 1, "is not the founding charter")
        elif index > 1 and record.kind is not Kind.FOUNDING and not self._founded:
            self._check_founders(index, "stands there, and before it")
        if self._execution is not None and record.kind is not Kind.CHARTER:
            need(False, Rule.CHARTER, index, "stands where the charter of an executed vote must stand")
            self._execution = None
        if self._pending is not None and record.kind is not Kind.OPENING:
            need(False, Rule.VOTE, index, "stands where the opening of a proposal must stand")
            self._pending = None

    def _charter(self, index: int, record: Record) -> None:
        charter = charter_file.from_canonical(record.body)
        execution, self._execution = self._execution, None
        if self.history:
            self._check_derived(index, record.at_ms, charter, execution)
        else:
            self._found(index, charter)
        self.history.append(charter)

    def _check_derived(
        self, index: int, at_ms: int, charter: Charter, execution: tuple[int, dict[str, Any]] | None
    ) -> None:
        need, before = self._findings.require, self.charter
        name = f"makes charter version {charter.version}"
        if execution is None:
            self._findings.add(Rule.CHARTER, index, f"{name} without an executed vote")
            return
        facts = execution[1]
        vote = self._votes.get(facts["proposal"])
        if vote is None:
            return  # the execution has been found already
        run = facts.get("run", "")
        changed = features.carry_out(
            self.history[vote.base :],
            vote.proposal.feature,
            vote.proposal.parameters,
            run=run,
            round_number=facts["round"],
        )
        if isinstance(changed, Refusal):
            self._findings.add(
                Rule.CHARTER, index, f"{name}, but its vote cannot lead there: {changed.message}"
            )
            return
        number, vote.made = vote.opening.number, charter.version
        lacks = vote.lacks(changed, at_ms)
        need(
            not lacks, Rule.VOTE, index, f"{name} by P-{number:04d}, which was not to be carried out: {lacks}"
        )
        need(
            changed == charter, Rule.CHARTER, index, f"{name}, which is not what P-{number:04d} was voted for"
        )
        described = features.execution_facts(facts["proposal"], number, before, charter, facts["round"], run)
        need(
            facts == described,
            Rule.CHARTER,
            execution[0],
            f"does not describe charter version {charter.version}",
        )

    def _propose(self, index: int, body: bytes) -> None:
        note = notes.parse(body)
        proposal = Proposal.from_note(note)
        self._pending, self._sound = (index, proposal), False
        if not self.by_member(index, note, proposal.proposer):
            return
        need, charter = self._findings.require, self.charter
        self.once(index, note, Rule.VOTE, "is a proposal that stood before")
        ours = (proposal.consortium, proposal.charter) == (
            charter.consortium.name,
            charter_file.digest(charter),
        )
        need(ours, Rule.VOTE, index, "was proposed for another charter than the one in force")
        if ours:
            words = (charter, proposal.feature, proposal.parameters)
            wrong = features.check(*words) or features.may_not_propose(*words, proposal.proposer)
            self._sound = wrong is None
            need(not wrong, Rule.VOTE, index, f"proposes what cannot be: {wrong.message if wrong else ''}")

    def _open(self, index: int, record: Record) -> None:
        opening = Opening.from_facts(record.facts)
        pending, self._pending = self._pending, None
        if pending is None or pending[1].id != opening.proposal:
            self._findings.add(Rule.VOTE, index, "opens a vote on what was not proposed right before it")
            return
        proposal, number = pending[1], len(self._votes) + 1
        if not self._sound:
            return  # what it proposes cannot be, and was found so
        contributed = self._contributions.at(self.charter, record.at_ms)
        lawful = Opening.of(
            proposal, self.charter, number=number, now_ms=record.at_ms, contributed=contributed,
            dormant=self._dormancy.members,
        )  # fmt: skip
        what = f"opens P-{number:04d} with another electorate, window or rule than charter version {self.charter.version}"
        self._findings.require(opening == lawful, Rule.VOTE, index, f"{what} gives it")
        binding = features.FEATURES[proposal.feature].binding
        self._votes[opening.proposal] = Vote(
            opening,
            proposal.proposer,
            binding,
            needs_micro=proposal.needs_micro,
            proposal=proposal,
            base=len(self.history) - 1,
        )

    def _ballot(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        ballot = Ballot.from_note(note)
        vote = self._votes.get(ballot.proposal)
        if vote is None:
            self._findings.add(Rule.VOTE, index, "is a ballot on a proposal that was never opened")
            return
        member = self.history[vote.base].member(ballot.voter)
        if member is None:
            self.signed(index, note, None, ballot.voter)
            return
        wrong = open_ballot(note, member, self._ballot_keys.get(member.name), record.at_ms)
        if wrong is not None:
            self._findings.add(Rule.SIGNATURE, index, f"is forged: {wrong.message}")
            return
        need, name = self._findings.require, f"P-{vote.opening.number:04d}"
        self.once(index, note, Rule.VOTE, f"is a ballot on {name} that stood before")
        state = vote.state(record.at_ms)
        need(state == "active", Rule.VOTE, index, f"is a ballot on {name}, which takes none: it is {state}")
        vote.ballots.append((index, record.at_ms, ballot))
        what = f"is a ballot that cannot count for {name}: another vote's, or out of its window"
        need(index not in vote.tally(record.at_ms).stray, Rule.VOTE, index, what)

    def _motion(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        motion = Motion.from_note(note)
        vote = self._votes.get(motion.proposal)
        if vote is None:
            self._findings.add(Rule.VOTE, index, "is a motion on a proposal that was never opened")
            return
        member = self.history[vote.base].member(motion.member)
        if not self.signed(index, note, Verifier.from_vkey(member.key) if member else None, motion.member):
            return
        name = f"P-{vote.opening.number:04d}"
        self.once(index, note, Rule.VOTE, f"is a motion on {name} that stood before")
        if why := vote.refuses(motion, record.at_ms):
            self._findings.add(Rule.VOTE, index, f"is a motion on {name} that comes to nothing: {why}")
        vote.motions.append((index, record.at_ms, motion))

    def _lodged(self, index: int, body: bytes) -> None:
        note = notes.parse(body)
        said = Lodged.from_note(note)
        if self.signed(index, note, self.key(said.site), said.site):
            self.once(index, note, Rule.VOTE, "is a site's word on a ballot that stood before")
            what = f"is {said.site}'s word on a ballot of {said.voter} that this journal does not have"
            self._findings.require(said.ballot in self._notes, Rule.TALLY, index, what)

    def _pause(self, index: int, body: bytes) -> None:
        note = notes.parse(body)
        wrong = unlawful_pause(Pause.from_note(note), note, self.charter)
        if wrong is not None:
            self._findings.add(Rule.SIGNATURE, index, f"pauses the rounds unlawfully: {wrong.message}")
        self.once(index, note, Rule.VOTE, "is a pause that stood before")

    def _delegate(self, index: int, body: bytes) -> None:
        note = notes.parse(body)
        found = check_ballot_key(note, self.charter)
        if isinstance(found, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"delegates ballots unlawfully: {found.message}")
            return
        self.once(index, note, Rule.SIGNATURE, f"brings a replaced ballot key of {found.member} back")
        self._ballot_keys[found.member] = found

    def _outcome(self, index: int, record: Record) -> None:
        facts, need = record.facts, self._findings.require
        vote = self._votes.get(facts["proposal"])
        if vote is None:
            self._findings.add(Rule.VOTE, index, "decides a proposal that was never opened")
            return
        name, state = f"P-{vote.opening.number:04d}", facts["state"]
        if state in ("stale", "failed"):
            wish, history = vote.proposal, self.history[vote.base :]
            changed = features.carry_out(history, wish.feature, wish.parameters)
            ends = isinstance(changed, Refusal) or vote.lacks(changed, record.at_ms)
            due = vote.ready(record.at_ms) and bool(ends)
            need(due, Rule.VOTE, index, f"calls {name} {state}, which it is not")
            vote.ended = state
            return
        count = vote.tally(record.at_ms)
        need(vote.decided is None and not vote.cancelled, Rule.VOTE, index, f"decides {name} a second time")
        same = count.state != "open" and facts == outcome_facts(vote.opening, count)
        what = (
            f"says {name} is {state}; recounted it is {count.state}, {count.for_weight} for and "
            f"{count.against_weight} against with {count.turnout_weight} of {count.total_weight} voting"
        )
        need(same, Rule.TALLY, index, what)
        vote.decided = (record.at_ms, state)
        self._dormancy.take(vote.opening, facts["counted"])
        target = self._votes.get(str(vote.proposal.parameters.get("proposal")))
        if state == "passed" and vote.proposal.feature == features.OVERRIDE and target is not None:
            target.overridden_ms = record.at_ms

    def _execute(self, index: int, record: Record) -> None:
        facts = record.facts
        self._execution = (index, facts)
        vote = self._votes.get(facts["proposal"])
        if vote is None:
            self._findings.add(Rule.VOTE, index, "carries out what was never voted on")
            return
        name = f"P-{vote.opening.number:04d}"
        state = vote.state(record.at_ms)
        what = f"carries out {name}, which is {state}, not before {vote.eta_ms} ms"
        self._findings.require(vote.ready(record.at_ms), Rule.VOTE, index, what)
        due = facts["round"] >= vote.proposal.effective_round
        what = (
            f"carries out {name} in round {facts['round']}, it was voted from {vote.proposal.effective_round}"
        )
        self._findings.require(due, Rule.VOTE, index, what)
        vote.ended = "executed"


def _begins(index: int) -> str:
    return "does not begin the journal" if index == 0 else "begins the journal a second time"
