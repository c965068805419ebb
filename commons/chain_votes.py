"""Step 5 of the chain: each later charter follows from one proposal, recounted here from its ballots.

Reads the records that `commons.chain` has proven to stand in the journal; believes nothing they say without the
signatures and rules it follows from. What it takes from the journal as it stands, since no note proves it, are the
contributions that weights were made of and who voted on proposals that are not shown: `hansa journal fsck` recounts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from commons import charter_file, features, notes
from commons.anchors import suffices, vouched
from commons.ballots import Ballot, Proposal
from commons.chain_shown import ShownVotes
from commons.charter import Charter
from commons.course import Course
from commons.delegating import open_ballot
from commons.errors import Code, Refusal
from commons.names import Digest, ProposalId
from commons.notes import Verifier
from commons.opening import Opening
from commons.records import Kind
from commons.signed import open_signed
from commons.tally import Tally, fits, outcome_facts

_NAMED_MAX = 8


@dataclass(frozen=True)
class Executed:
    """A vote that became law, as counted here."""

    proposal: Proposal
    opening: Opening
    tally: Tally
    round: int
    version: int


class VotesWalk(ShownVotes):
    def __init__(self, founding: Charter) -> None:
        super().__init__(founding)
        self.executed: list[Executed] = []

    def votes(
        self,
        least_version: int,
        receipts: Sequence[tuple[int, bytes]],
        known: Digest | None = None,
        whole: bool = False,
    ) -> None:
        self._begin("5 votes", Code.CHARTER_UNPROVEN)
        self._sort()
        begins = "the founding alone" if whole else self._go_ahead(least_version, known)
        for index in self.charters:
            if index > self.history_at[-1]:
                self._next_version(index)
        version = self.history[-1].version
        if version < least_version:
            self._fail(
                f"the charter goes back to version {version}; we verified version {least_version} before"
            )
        for index, data in receipts:
            self._counts(index, data)
        names = [f"P-{e.opening.number:04d}" for e in self.executed]
        more = f"{len(names) - _NAMED_MAX} votes and " if len(names) > _NAMED_MAX else ""
        said = more + ", ".join(names[-_NAMED_MAX:])
        if said and begins != "the founding alone":
            said += f", after {begins}"
        self._done(f"charter version {version} follows from {said or begins}")

    def _go_ahead(self, known_version: int, known: Digest | None) -> str:
        """To the charter this verifier proved before, and to those that enough members vouch for; says to which."""
        shown = {notes.digest(self.records[index].body): index for index in self.charters}
        said = "the founding alone"
        if known is not None and known in shown and shown[known] > self.history_at[-1]:
            self._trust(shown[known])
            said = f"charter version {known_version}, which was verified here before"
        for version, digest in sorted(self._anchors):
            index = shown.get(digest)
            if index is None or index <= self.history_at[-1] or version <= self.history[-1].version:
                continue
            members = vouched(self.history[-1], self._anchors[version, digest])
            if suffices(self.history[-1], members):
                of = len(self.history[-1].members)
                self._trust(index)
                said = f"charter version {version}, which {len(members)} of {of} members vouch for"
        return said

    def _trust(self, index: int) -> None:
        self.history = [self._attempt(charter_file.from_canonical, self.records[index].body)]
        self.history_at = [index]

    def _next_version(self, index: int) -> None:
        """Check the CHARTER record at `index` against the vote that its EXECUTION names."""
        current = self.history[-1]
        version = current.version + 1
        execution = self.records.get(index - 1)
        if execution is None or execution.kind is not Kind.EXECUTION:
            self._fail(f"charter version {version} (record {index}) follows from no executed proposal")
        facts = self._facts(index - 1)
        key, round_number, run = facts.get("proposal"), facts.get("round"), facts.get("run", "")
        if not isinstance(key, str) or type(round_number) is not int or not isinstance(run, str):
            self._fail(f"record {index - 1} names no proposal and round")
        at, proposal = self._proposal(ProposalId(key))
        if any(done.opening.proposal == key for done in self.executed):
            self._fail(f"proposal {proposal.title!r} is executed a second time for charter version {version}")
        base, course, count, name = self._vote(at, index, proposal)
        wrong = features.may_not_propose(
            self.history[base], proposal.feature, proposal.parameters, proposal.proposer
        )
        if wrong:
            self._fail(f"{name}: {wrong.message}")
        self._due(course, name, execution.at_ms, index)
        if round_number < proposal.effective_round:
            self._fail(
                f"{name} is executed in round {round_number}, it was voted from {proposal.effective_round}"
            )
        changed = features.carry_out(
            self.history[base:], proposal.feature, proposal.parameters, run=run, round_number=round_number
        )
        if isinstance(changed, Refusal):
            self._fail(f"{name} cannot lead to charter version {version}: {changed.message}")
        course.pledges = self._pledges(course, index, name)
        if why := course.lacks(changed, execution.at_ms):
            self._fail(f"{name} was not to be carried out: {why}")
        if charter_file.canonical(changed) != self.records[index].body:
            self._fail(
                f"charter version {version} is not what {name} was voted for: {self._differences(changed, index)}"
            )
        number = course.opening.number
        if facts != features.execution_facts(key, number, current, changed, round_number, run):
            self._fail(f"the execution of {name} (record {index - 1}) does not describe charter {version}")
        self.history.append(changed)
        self.history_at.append(index)
        self.executed.append(Executed(proposal, course.opening, count, round_number, version))

    def _proposal(self, key: ProposalId) -> tuple[int, Proposal]:
        """The proposal of that id and its index, signed by a member of the charter it was made under."""
        if key not in self._proposals:
            self._fail(f"the executed proposal {key} is not shown")
        index, note = self._proposals[key]
        proposal = self._attempt(Proposal.from_note, note)
        member = self.history[self._in_force(index)].member(proposal.proposer)
        if member is None or member.suspended:
            what = "is suspended" if member else "is no member"
            self._fail(f"proposal {proposal.title!r} is by {proposal.proposer!r}, who {what}")
        wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
        if wrong:
            self._fail(f"proposal {proposal.title!r}: {wrong.message}")
        return index, proposal

    def _vote(self, at: int, before: int, proposal: Proposal) -> tuple[int, Course, Tally, str]:
        """(position of its charter in the history, the vote, its tally, its name), recounted and found to have passed."""
        base, opening = self._opening(at, proposal)
        name = f"P-{opening.number:04d} {proposal.title!r}"
        binding = features.FEATURES[proposal.feature].binding
        course = Course(opening, proposal.proposer, binding, needs_micro=proposal.needs_micro)
        for index, facts in self._of_proposal(opening.proposal).outcomes:
            if at + 1 < index < before:
                count = self._outcome(course, index, facts, self.history[base], name)
                course.motions = self._motions(at + 1, before, course, self.history[base], name)
                return base, course, count, name
        self._fail(f"{name} is executed without an outcome")

    def _opening(self, at: int, proposal: Proposal) -> tuple[int, Opening]:
        """(position of its charter in the history, opening) of the proposal recorded at `at`."""
        record = self.records.get(at + 1)
        if record is None or record.kind is not Kind.OPENING:
            self._fail(f"proposal {proposal.title!r} (record {at}) was never opened for a vote")
        opening = self._attempt(Opening.from_facts, self._facts(at + 1))
        base = self._in_force(at)
        charter = self.history[base]
        if proposal.consortium != charter.consortium.name or proposal.charter != charter_file.digest(charter):
            self._fail(
                f"proposal {proposal.title!r} was made for another charter than the one it was voted under"
            )
        known = features.parameters(proposal.feature, proposal.parameters)
        if isinstance(known, Refusal):
            self._fail(f"proposal {proposal.title!r} could not be voted on: {known.message}")
        lawful = Opening.of(
            proposal,
            charter,
            number=opening.number,
            now_ms=record.at_ms,
            contributed=opening.contributed,
            dormant=self._dormant[at + 1],
        )
        if opening != lawful:
            self._fail(
                f"P-{opening.number:04d} was not opened with one vote per member and the rules of charter "
                f"version {charter.version}"
                if charter.voting.power.base == "equal"
                else f"P-{opening.number:04d} was not opened with the weights and rules of charter version {charter.version}"
            )
        return base, opening

    def _outcome(
        self, course: Course, index: int, facts: Mapping[str, Any], charter: Charter, name: str
    ) -> Tally:
        """The vote, recounted from the ballots and equal to what the journal recorded at `index`."""
        at_ms = self.records[index].at_ms
        course.ballots = self._ballots(index, course.opening, charter, name)
        course.motions = self._motions(-1, index, course, charter, name)
        count = course.tally(at_ms)
        if count.stray:
            voter = next(b.voter for i, _, b in course.ballots if i == count.stray[0])
            self._fail(
                f"{voter}'s ballot on {name} (record {count.stray[0]}) was cast outside its window or under other rules"
            )
        if count.state != "passed":
            self._fail(
                f"{name} did not pass: recounted here it is {count.state}, {count.for_weight} for, "
                f"{count.against_weight} against, {count.turnout_weight} of {count.total_weight} voted"
            )
        if facts != outcome_facts(course.opening, count):
            self._fail(f"the tally of {name} in the journal (record {index}) is not the one counted here")
        course.decided = (at_ms, "passed")
        return count

    def lawful(self, done: Executed, data: bytes) -> bool:
        """Whether it is a ballot for that vote, by its voter's key or the one that had last been given its ballots."""
        note, of = notes.parse(data), done.opening
        ballot = Ballot.from_note(note)
        charter = next(c for c in self.history if charter_file.digest(c) == of.charter)
        member = charter.member(ballot.voter)
        if member is None or not fits(of, ballot):
            return False
        delegated = self._delegated(member.name, max(self.records) + 1, charter)
        return open_ballot(note, member, delegated, of.opened_ms) is None

    def ended_ms(self, done: Executed) -> int:
        """When voting was over: with its window, or with the ballot that completed the electorate."""
        counted = done.tally.counted
        if len(counted) < len(done.opening.electorate):
            return done.tally.closes_ms
        return self.records[max(index for _, index in counted.values())].at_ms

    def _due(self, course: Course, name: str, at_ms: int, before: int) -> None:
        """The vote may be carried out at this time: neither withdrawn nor vetoed for good, neither early nor too late."""
        if course.state(at_ms) == "vetoed":
            for key in self._overrides.get(course.opening.proposal, ()):
                at, override = self._proposal(key)
                if at < before:
                    _, vote, _, _ = self._vote(at, before, override)
                    assert vote.decided is not None, "a vote that passed has ended"
                    course.overridden_ms = vote.decided[0]
        if not course.ready(at_ms):
            self._fail(
                f"{name} is carried out at {at_ms} ms, when it is {course.state(at_ms)} (not before {course.eta_ms} ms)"
            )

    def _counts(self, index: int, data: bytes) -> None:
        """Demand that the acknowledged ballot at `index` is counted, unless its voter voted again later."""
        ballot = self._attempt(Ballot.from_note, self._attempt(notes.parse, data))
        for done in self.executed:
            if done.opening.proposal != ballot.proposal:
                continue
            _, counted = done.tally.counted.get(ballot.voter, (None, -1))
            shown = self.records.get(index)
            if counted < index or (shown is not None and shown.body != data):
                self._fail(
                    f"{ballot.voter}'s ballot on P-{done.opening.number:04d} has a receipt (record {index}) but was "
                    f"not counted; {ballot.voter} shows the receipt to the other members"
                )

    def _differences(self, wanted: Charter, index: int) -> str:
        shown = self._attempt(charter_file.from_canonical, self.records[index].body)
        different = charter_file.diff(wanted, shown)
        return ", ".join(f"{at} should be {old!r}, is {new!r}" for at, old, new in different[:5])
