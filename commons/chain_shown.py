"""What a proof shows of votes, put with the proposals it is about, and opened with the keys it must be signed with.

Knows whose keys count when. Whether a vote was lawful, and what it comes to, is `commons.chain_votes`' to say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from commons import notes
from commons.anchors import Anchor
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.course import Course
from commons.delegating import check_ballot_key, open_ballot
from commons.dormancy import Dormancy
from commons.errors import Refusal
from commons.motions import BallotKey, Motion
from commons.names import Digest, ProposalId
from commons.notes import Note, Verifier
from commons.opening import Opening
from commons.pledging import Pledge, check_pledge
from commons.records import Kind, Record
from commons.signed import open_signed, text_digest
from commons.steps import Steps


@dataclass
class Shown:
    """The records of one proposal, by index."""

    ballots: list[tuple[int, Note, Ballot]] = field(default_factory=list)
    motions: list[tuple[int, Note, Motion]] = field(default_factory=list)
    pledges: list[tuple[int, Note]] = field(default_factory=list)
    outcomes: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)


class ShownVotes(Steps):
    """Needs `records` and `charters` (indexes of CHARTER records), and a `history` that begins with a trusted charter."""

    records: dict[int, Record]
    charters: list[int]

    def __init__(self, founding: Charter) -> None:
        super().__init__()
        self.history = [founding]
        self.history_at: list[int] = []
        """Index of each charter's record."""
        self._proposals: dict[ProposalId, tuple[int, Note]] = {}
        self._overrides: dict[str, list[ProposalId]] = {}
        self._shown: dict[ProposalId, Shown] = {}
        self._delegations: dict[str, list[tuple[int, Note]]] = {}
        self._anchors: dict[tuple[int, Digest], list[Note]] = {}
        self._dormant: dict[int, frozenset[str]] = {}

    def _sort(self) -> None:
        """Every record of a vote is read once and put with its proposal."""
        dormancy, openings = Dormancy(), {}
        for index, record in self.records.items():
            match record.kind:
                case Kind.PROPOSAL | Kind.BALLOT | Kind.MOTION | Kind.BALLOT_KEY | Kind.PLEDGE:
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
        elif kind is Kind.PLEDGE:
            proposal = self._attempt(Pledge.from_note, note).proposal
            self._of_proposal(ProposalId(proposal)).pledges.append((index, note))
        else:
            member = self._attempt(BallotKey.from_note, note).member
            self._delegations.setdefault(member, []).append((index, note))

    def _of_proposal(self, key: ProposalId) -> Shown:
        return self._shown.setdefault(key, Shown())

    def _in_force(self, index: int) -> int:
        """Position in the history of the charter in force when record `index` was written."""
        at = bisect_left(self.history_at, index) - 1
        if at < 0 and self.history[0].version > 1:
            self._fail(
                f"record {index} was written before charter version {self.history[0].version}, with which this "
                "proof begins: ask for the whole chain"
            )
        return max(at, 0)

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

    def shows(self, proposal: ProposalId, ballot: Digest) -> bool:
        """Whether a ballot, by the digest of its text, is among those shown of this vote."""
        return any(text_digest(note) == ballot for _, note, _ in self._of_proposal(proposal).ballots)

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

    def _pledges(self, course: Course, before: int, name: str) -> list[tuple[int, int, Pledge]]:
        """What members promised for a vote that needs it, each by its own key, and each once."""
        found: dict[Digest, tuple[int, int, Pledge]] = {}
        shown = self._of_proposal(course.opening.proposal).pledges if course.needs_micro else ()
        for index, note in shown:
            pledge = check_pledge(note, self.history[self._in_force(index)])
            if isinstance(pledge, Refusal):
                self._fail(f"a pledge on {name} (record {index}): {pledge.message}")
            if index < before:
                found.setdefault(pledge.digest, (index, self.records[index].at_ms, pledge))
        return list(found.values())

    def _of(self, kind: Kind) -> Iterable[Record]:
        return [record for record in self.records.values() if record.kind is kind]

    def _facts(self, index: int) -> dict[str, Any]:
        return self._attempt(lambda: self.records[index].facts)
