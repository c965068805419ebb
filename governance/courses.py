"""What the journal says of proposals: a fold of its records into one `Course` for each.

Changes only by `apply`. What may be added to it is decided in `governance.proposals`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from commons import charter_file, features, notes
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.course import Course
from commons.dormancy import Dormancy
from commons.lodging import Lodged
from commons.motions import BallotKey, Motion
from commons.names import Digest, ProposalId
from commons.notes import NoteError
from commons.opening import Opening
from commons.pledging import Pledge
from commons.records import Kind, Record
from commons.signed import text_digest

Contributed = Callable[[Charter, int], Mapping[str, int]]
"""(charter, now in ms) -> member -> what counts of its contributions, in micro."""


@dataclass(kw_only=True)
class Item(Course):
    """One proposal with all that the journal says of it."""

    index: int
    proposal: Proposal
    evidence: list[int]
    """Journal indexes of proposal, opening, ballots, motions, outcome, execution."""
    outcome_index: int | None = None
    executed_round: int | None = None
    executed_ms: int | None = None
    execution_index: int | None = None
    charter_version: int | None = None
    settled: dict[str, str] = field(default_factory=dict)
    """Tail of a pledge that has ended -> `paid` or `returned`."""

    lodged: set[str] = field(default_factory=set)
    """Digests of its ballots that sites keep."""

    def open_pledges(self) -> list[Pledge]:
        return [pledge for _, _, pledge in self.pledges if pledge.tail not in self.settled]


class Courses:
    def __init__(self, contributed: Contributed = lambda _, __: {}) -> None:
        self.items: dict[ProposalId, Item] = {}
        self.passed: list[ProposalId] = []
        """Those whose success waits to be carried out, as they passed."""
        self.charters: list[Charter] = []
        self.bases: dict[Digest, int] = {}
        """Digest of a charter -> its position in `charters`."""
        self.ballot_keys: dict[str, BallotKey] = {}
        """Member -> its last delegation."""
        self.dormancy = Dormancy()
        self.last_ms = 0
        self.contributed = contributed
        self._pending: dict[ProposalId, tuple[int, Proposal]] = {}
        self._notes: dict[Digest, int] = {}
        self.executed: list[Item] = []
        """In the order of the charter versions they made."""
        self.delegations: list[tuple[int, str]] = []
        """(journal index, member) of each time ballots were delegated."""
        self._counts: list[int] = []
        """Openings and outcomes of all votes that ended: what dormancy follows from."""

    def apply(self, index: int, record: Record) -> None:
        self.last_ms = record.at_ms
        match record.kind:
            case Kind.CHARTER:
                charter = charter_file.from_canonical(record.body)
                self.bases[notes.digest(record.body)] = len(self.charters)
                self.charters.append(charter)
            case Kind.PROPOSAL:
                note = notes.parse(record.body)
                proposal = Proposal.from_note(note)
                self._notes[text_digest(note)] = index
                self._pending[proposal.id] = (index, proposal)
            case Kind.OPENING:
                self._open(index, Opening.from_facts(record.facts))
            case Kind.BALLOT | Kind.MOTION | Kind.BALLOT_KEY | Kind.PLEDGE | Kind.LODGED:
                self._speak(index, record)
            case Kind.TRANSFER if b'"type":"pledge-' in record.body:
                facts = record.facts
                item = self.items[ProposalId(facts["proposal"])]
                item.settled[facts["hold"].removeprefix("pledge/")] = facts["type"].removeprefix("pledge-")
            case Kind.OUTCOME | Kind.EXECUTION:
                self._conclude(index, record)
            case _:
                pass

    def _open(self, index: int, opening: Opening) -> None:
        at, proposal = self._pending.pop(opening.proposal)
        self.items[opening.proposal] = Item(
            opening,
            proposal.proposer,
            features.FEATURES[proposal.feature].binding,
            needs_micro=proposal.needs_micro,
            index=at,
            proposal=proposal,
            evidence=[at, index],
        )

    def _speak(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        self._notes[text_digest(note)] = index
        match record.kind:
            case Kind.BALLOT:
                ballot = Ballot.from_note(note)
                item = self.items[ballot.proposal]
                item.ballots.append((index, record.at_ms, ballot))
                item.evidence.append(index)
            case Kind.MOTION:
                motion = Motion.from_note(note)
                item = self.items[ProposalId(motion.proposal)]
                item.motions.append((index, record.at_ms, motion))
                item.evidence.append(index)
            case Kind.LODGED:
                said = Lodged.from_note(note)
                self.items[ProposalId(said.proposal)].lodged.add(said.ballot)
            case Kind.PLEDGE:
                pledge = Pledge.from_note(note)
                item = self.items[ProposalId(pledge.proposal)]
                item.pledges.append((index, record.at_ms, pledge))
                item.evidence.append(index)
            case _:
                delegation = BallotKey.from_note(note)
                self.ballot_keys[delegation.member] = delegation
                self.delegations.append((index, delegation.member))

    def _conclude(self, index: int, record: Record) -> None:
        facts = record.facts
        proposal = ProposalId(facts["proposal"])
        item = self.items[proposal]
        item.evidence.append(index)
        if record.kind is Kind.EXECUTION:
            item.ended = "executed"
            item.executed_round, item.charter_version = facts["round"], facts["version"]
            item.executed_ms, item.execution_index = record.at_ms, index
            self.passed.remove(proposal)
            self.executed.append(item)
            return
        match facts["state"]:
            case "stale" | "failed" as ended:
                item.ended = ended
                self.passed.remove(proposal)
            case state:
                item.decided, item.outcome_index = (record.at_ms, state), index
                self.dormancy.take(item.opening, facts["counted"])
                self._counts += [item.evidence[1], index]
                if state == "passed":
                    self._succeed(item, record.at_ms)

    def _succeed(self, item: Item, at_ms: int) -> None:
        """It waits to be carried out; an override, the one vote that passes and changes no charter, lifts its veto."""
        if item.binding:
            self.passed.append(item.opening.proposal)
            return
        target = self.items[ProposalId(item.proposal.parameters["proposal"])]
        target.overridden_ms = at_ms
        target.evidence.extend(item.evidence)

    @property
    def basis(self) -> tuple[int, ...]:
        """Journal indexes of what the proof of any vote may need beside its own records."""
        counts = self._counts if any(charter.voting.dormancy for charter in self.charters) else []
        return (*(at for at, _ in self.delegations), *counts)

    def find(self, note: bytes) -> int | None:
        """Journal index of a note with the very same text, if it was recorded before."""
        try:
            return self._notes.get(text_digest(notes.parse(note)))
        except NoteError:
            return None

    def known(self, digest: Digest) -> bool:
        """Whether a note with this text was recorded."""
        return digest in self._notes
