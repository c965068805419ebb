"""The auditor's reading of law: who founded the consortium, whose keys speak, and what was voted into the charter.

Every signature is checked with the key that was in force, every ballot counted again, every charter derived again
from the vote it names. Shares the members' own arithmetic (`commons`), and nothing with the coordinator's views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from commons import charter_file, features, notes
from commons.anchors import check_anchor
from commons.ballots import Ballot, Proposal
from commons.charter import Charter, Consortium
from commons.course import Course
from commons.delegating import check_ballot_key, open_ballot, unlawful_pause
from commons.dormancy import Dormancy
from commons.errors import Refusal
from commons.founding import check_delegation, check_founding
from commons.motions import BallotKey, Motion, Pause
from commons.notes import Note, Verifier
from commons.opening import Opening
from commons.records import Kind, Record
from commons.signed import open_signed, text_digest
from commons.tally import outcome_facts
from governance.fsck_findings import Findings, Rule
from governance.fsck_power import Contributions


@dataclass(kw_only=True)
class _Vote(Course):
    proposal: Proposal
    base: int
    """Position of its charter in the history."""


class Votes:
    """Reads GENESIS, CHARTER, FOUNDING, SITE and PAUSE records, and those of votes."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._contributions = Contributions()
        self.history: list[Charter] = []
        self.log: Verifier | None = None
        """The key that the founders put into the charter."""
        self._name = ""
        self._keys: dict[str, Verifier] = {}
        self._notes: set[str] = set()
        self._founders: set[str] = set()
        self._founded = False
        self._pending: tuple[int, Proposal] | None = None
        self._sound = False
        """What is pending could be carried out."""
        self._votes: dict[str, _Vote] = {}
        self._ballot_keys: dict[str, BallotKey] = {}
        self._dormancy = Dormancy()
        self._execution: tuple[int, dict[str, Any]] | None = None

    @property
    def charter(self) -> Charter:
        """The one in force. Raises ValueError before there is one."""
        if not self.history:
            raise ValueError("it stands before the founding charter")
        return self.history[-1]

    def version(self, number: int) -> Charter:
        """Raises ValueError when there is no such version yet."""
        found = next((c for c in self.history if c.version == number), None)
        if found is None:
            raise ValueError(f"there is no charter version {number} yet")
        return found

    def key(self, site: str) -> Verifier | None:
        """The key that speaks for the site now."""
        return self._keys.get(site)

    def take(self, index: int, record: Record) -> None:
        self._follows(index, record)
        match record.kind:
            case Kind.GENESIS:
                self._genesis(index, record.facts)
            case Kind.CHARTER:
                self._charter(index, record.body)
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

    def signed(self, index: int, note: Note, verifier: Verifier | None, owner: str) -> bool:
        """Whether the owner's key in force signed the note, and nobody else."""
        if verifier is None:
            self._findings.add(Rule.SIGNATURE, index, f"is said to be by {owner}, who has no key here")
            return False
        wrong = open_signed(note, verifier, owner)
        if wrong is not None:
            self._findings.add(Rule.SIGNATURE, index, f"is forged: {wrong.message}")
        return wrong is None

    def by_member(self, index: int, note: Note, member: str) -> bool:
        """The same for a member of the charter in force."""
        found = self.charter.member(member)
        return self.signed(index, note, Verifier.from_vkey(found.key) if found else None, member)

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

    def _check_founders(self, index: int, where: str) -> None:
        self._founded = True
        lacking = (
            [m.name for m in self.history[0].members if m.name not in self._founders]
            if self.history
            else ["all"]
        )
        what = f"{where} {', '.join(lacking)} had not signed the founding charter"
        self._findings.require(not lacking, Rule.FOUNDING, index, what)

    def _genesis(self, index: int, facts: dict[str, Any]) -> None:
        if index == 0:
            self.log, self._name = Verifier.from_vkey(facts["log_key"]), facts["consortium"]

    def _charter(self, index: int, body: bytes) -> None:
        charter = charter_file.from_canonical(body)
        execution, self._execution = self._execution, None
        need = self._findings.require
        if not self.history:
            wrong = charter_file.problems(charter)
            named = self.log is not None and charter.consortium == Consortium(
                name=self._name, log_key=self.log.vkey
            )
            need(not wrong, Rule.FOUNDING, index, f"founds on a charter that is none: {'; '.join(wrong)}")
            need(charter.version == 1, Rule.FOUNDING, index, f"founds on version {charter.version}")
            what = "names another consortium or log key than the journal's first record"
            need(named, Rule.FOUNDING, index, what)
        else:
            self._check_derived(index, charter, execution)
        self.history.append(charter)

    def _check_derived(
        self, index: int, charter: Charter, execution: tuple[int, dict[str, Any]] | None
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
        number = vote.opening.number
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

    def _founding(self, index: int, body: bytes) -> None:
        if len(self.history) != 1:
            self._findings.add(Rule.FOUNDING, index, "is a founder's signature outside the founding")
            return
        partner = check_founding(body, self.charter, charter_file.digest(self.charter))
        if isinstance(partner, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"is no founder's signature: {partner.message}")
        else:
            again = partner in self._founders
            self._findings.require(not again, Rule.FOUNDING, index, f"is a second signature of {partner}")
            self._founders.add(partner)

    def _site(self, index: int, body: bytes) -> None:
        found = check_delegation(body, self.charter)
        if isinstance(found, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"gives a site keys unlawfully: {found.message}")
            return
        delegation, verifier = found
        self.once(
            index, notes.parse(body), Rule.SIGNATURE, f"brings replaced keys of site {delegation.site} back"
        )
        self._keys[delegation.site] = verifier

    def _anchor(self, index: int, body: bytes) -> None:
        note = notes.parse(body)
        found = check_anchor(note, self.charter)
        if isinstance(found, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"vouches unlawfully for a charter: {found.message}")
            return
        self.once(index, note, Rule.CHARTER, "is an anchor that stood before")
        held = charter_file.digest(self.version(found.charter_version))
        what = f"vouches for another charter version {found.charter_version} than the journal has"
        self._findings.require(found.charter == held, Rule.CHARTER, index, what)

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
        self._votes[opening.proposal] = _Vote(
            opening, proposal.proposer, binding, proposal=proposal, base=len(self.history) - 1
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
            due = vote.ready(record.at_ms) and isinstance(changed, Refusal)
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

    def once(self, index: int, note: Note, rule: Rule, what: str) -> None:
        """The same words, whoever's bytes carry them, stand in a journal once."""
        words = text_digest(note)
        self._findings.require(words not in self._notes, rule, index, what)
        self._notes.add(words)


def _begins(index: int) -> str:
    return "does not begin the journal" if index == 0 else "begins the journal a second time"
