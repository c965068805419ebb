"""Step 5 of the chain: each later charter follows from one proposal, recounted here from its ballots.

Reads the records that `commons.chain` has proven to stand in the journal; believes nothing they say without the
signatures and rules it follows from. What it takes from the journal as it stands, since no note proves it, are the
contributions that weights were made of and who voted on proposals that are not shown: `hansa journal fsck` recounts them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from commons import charter_file, features, notes
from commons.anchors import Anchor, suffices, vouched
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.course import Course
from commons.delegating import check_ballot_key, open_ballot
from commons.dormancy import Dormancy
from commons.errors import Code, Refusal
from commons.motions import BallotKey, Motion
from commons.names import Digest, ProposalId
from commons.notes import Note, Verifier
from commons.opening import Opening
from commons.records import Kind, Record
from commons.signed import open_signed, text_digest
from commons.steps import Steps
from commons.tally import Tally, outcome_facts

_NAMED_MAX = 8


@dataclass(frozen=True)
class Executed:
    """A vote that became law, as counted here."""

    proposal: Proposal
    opening: Opening
    tally: Tally
    round: int
    version: int


@dataclass
class _Shown:
    """The records of one proposal, by index."""

    ballots: list[tuple[int, Note, Ballot]] = field(default_factory=list)
    motions: list[tuple[int, Note, Motion]] = field(default_factory=list)
    outcomes: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)


class VotesWalk(Steps):
    """Needs `records` and `charters` (indexes of CHARTER records), and a `history` that begins with a trusted charter."""

    records: dict[int, Record]
    charters: list[int]

    def __init__(self, founding: Charter) -> None:
        super().__init__()
        self.history = [founding]
        self.history_at: list[int] = []
        """Index of each charter's record."""
        self.executed: list[Executed] = []
        self._proposals: dict[ProposalId, tuple[int, Note]] = {}
        self._overrides: dict[str, list[ProposalId]] = {}
        self._shown: dict[ProposalId, _Shown] = {}
        self._delegations: dict[str, list[tuple[int, Note]]] = {}
        self._anchors: dict[tuple[int, Digest], list[Note]] = {}
        self._dormant: dict[int, frozenset[str]] = {}

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

    def _sort(self) -> None:
        """Every record of a vote is read once and put with its proposal."""
        dormancy, openings = Dormancy(), {}
        for index, record in self.records.items():
            match record.kind:
                case Kind.PROPOSAL | Kind.BALLOT | Kind.MOTION | Kind.BALLOT_KEY:
                    self._sort_note(index, record.kind, self._attempt(notes.parse, record.body))
                case Kind.ANCHOR:
                    note = self._attempt(notes.parse, record.body)
                    anchor = self._attempt(Anchor.from_note, note)
                    key = (anchor.charter_version, Digest(anchor.charter))
                    self._anchors.setdefault(key, []).append(note)
                case Kind.OPENING:
                    self._dormant[index] = dormancy.members
                    openings[self._facts(index).get("proposal")] = index
                case Kind.OUTCOME:
                    facts = self._facts(index)
                    proposal = facts.get("proposal")
                    if isinstance(proposal, str):
                        self._of_proposal(ProposalId(proposal)).outcomes.append((index, facts))
                    if "counted" in facts and proposal in openings:
                        opening = self._attempt(Opening.from_facts, self._facts(openings[proposal]))
                        dormancy.take(opening, facts["counted"])

    def _sort_note(self, index: int, kind: Kind, note: Note) -> None:
        if kind is Kind.PROPOSAL:
            key = ProposalId(text_digest(note))
            self._proposals.setdefault(key, (index, note))
            if "\nfeature override-veto\n" in note.text:
                target = self._attempt(Proposal.from_note, note).parameters.get("proposal")
                self._overrides.setdefault(str(target), []).append(key)
        elif kind is Kind.BALLOT:
            ballot = self._attempt(Ballot.from_note, note)
            self._of_proposal(ballot.proposal).ballots.append((index, note, ballot))
        elif kind is Kind.MOTION:
            motion = self._attempt(Motion.from_note, note)
            self._of_proposal(ProposalId(motion.proposal)).motions.append((index, note, motion))
        else:
            member = self._attempt(BallotKey.from_note, note).member
            self._delegations.setdefault(member, []).append((index, note))

    def _of_proposal(self, key: ProposalId) -> _Shown:
        return self._shown.setdefault(key, _Shown())

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
        course = Course(opening, proposal.proposer, binding)
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

    def _in_force(self, index: int) -> int:
        """Position in the history of the charter in force when record `index` was written."""
        at = bisect_left(self.history_at, index) - 1
        if at < 0 and self.history[0].version > 1:
            self._fail(
                f"record {index} was written before charter version {self.history[0].version}, with which this "
                "proof begins: ask for the whole chain"
            )
        return max(at, 0)

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

    def _ballots(
        self, decided: int, opening: Opening, charter: Charter, name: str
    ) -> list[tuple[int, int, Ballot]]:
        found = []
        for index, note, ballot in self._of_proposal(opening.proposal).ballots:
            if index >= decided:
                continue
            member, at_ms = charter.member(ballot.voter), self.records[index].at_ms
            if member is None:
                self._fail(
                    f"a ballot on {name} (record {index}) is by {ballot.voter!r}, who is not in its electorate"
                )
            wrong = open_ballot(note, member, self._delegated(member.name, index, charter), at_ms)
            if wrong:
                self._fail(f"a ballot on {name} (record {index}): {wrong.message}")
            found.append((index, at_ms, ballot))
        return found

    def _delegated(self, member: str, index: int, charter: Charter) -> BallotKey | None:
        """The member's last delegation of its ballots before record `index`."""
        earlier = [note for at, note in self._delegations.get(member, ()) if at < index]
        if not earlier:
            return None
        found = check_ballot_key(earlier[-1], charter)
        return self._fail(found.message) if isinstance(found, Refusal) else found

    def _motions(
        self, after: int, before: int, course: Course, charter: Charter, name: str
    ) -> list[tuple[int, int, Motion]]:
        found = []
        for index, note, motion in self._of_proposal(course.opening.proposal).motions:
            if not after < index < before:
                continue
            member = charter.member(motion.member)
            if member is None:
                self._fail(f"a motion on {name} (record {index}) is by {motion.member!r}, who is no member")
            if wrong := open_signed(note, Verifier.from_vkey(member.key), member.name):
                self._fail(f"a motion on {name} (record {index}): {wrong.message}")
            found.append((index, self.records[index].at_ms, motion))
        return found

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
            if counted < index:
                self._fail(
                    f"{ballot.voter}'s ballot on P-{done.opening.number:04d} has a receipt (record {index}) but was "
                    f"not counted; {ballot.voter} shows the receipt to the other members"
                )

    def _differences(self, wanted: Charter, index: int) -> str:
        shown = self._attempt(charter_file.from_canonical, self.records[index].body)
        different = charter_file.diff(wanted, shown)
        return ", ".join(f"{at} should be {old!r}, is {new!r}" for at, old, new in different[:5])

    def _of(self, kind: Kind) -> Iterable[Record]:
        return [record for record in self.records.values() if record.kind is kind]

    def _facts(self, index: int) -> dict[str, Any]:
        return self._attempt(lambda: self.records[index].facts)
