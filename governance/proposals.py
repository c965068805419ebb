"""Proposals from note to charter: what may be submitted, when a vote is decided, what is carried out.

A view of the journal. The rules themselves stand in `commons` (ballots, tally, features), because every
site applies them to the proof as well (`commons.chain`); here they meet the log's clock and order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from commons import ballots, charter_file, features, notes
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.names import Digest, ProposalId
from commons.notes import Note, NoteError, Verifier
from commons.records import Kind, Record, fact
from commons.signed import open_signed, text_digest
from commons.tally import Opening, Tally, outcome_facts, tally
from commons.views import BallotView, ProposalView


@dataclass
class _Item:
    """One proposal with all that the journal says of it."""

    index: int
    proposal: Proposal
    opening: Opening
    evidence: list[int]
    """Journal indexes of proposal, opening, ballots, outcome, execution."""
    ballots: list[tuple[int, int, Ballot]] = field(default_factory=list)
    state: str = "open"
    executed_round: int | None = None
    charter_version: int | None = None

    def tally(self, now_ms: int) -> Tally:
        return tally(self.opening, self.ballots, now_ms)


class Proposals:
    """Changes only by `apply`; the `decide_` methods change nothing."""

    def __init__(self) -> None:
        self._items: dict[ProposalId, _Item] = {}
        self._pending: dict[ProposalId, tuple[int, Proposal]] = {}
        self._passed: list[ProposalId] = []
        self._charters: list[Charter] = []
        self._bases: dict[Digest, int] = {}
        self._notes: dict[Digest, int] = {}
        self._evidence: list[int] = []

    def apply(self, index: int, record: Record) -> None:
        match record.kind:
            case Kind.CHARTER:
                charter = charter_file.from_canonical(record.body)
                self._bases[notes.digest(record.body)] = len(self._charters)
                self._charters.append(charter)
            case Kind.PROPOSAL:
                note = notes.parse(record.body)
                proposal = Proposal.from_note(note)
                self._notes[text_digest(note)] = index
                self._pending[proposal.id] = (index, proposal)
            case Kind.OPENING:
                opening = Opening.from_facts(record.facts)
                at, proposal = self._pending.pop(opening.proposal)
                self._items[opening.proposal] = _Item(at, proposal, opening, [at, index])
            case Kind.BALLOT:
                note = notes.parse(record.body)
                ballot = Ballot.from_note(note)
                self._notes[text_digest(note)] = index
                item = self._items[ballot.proposal]
                item.ballots.append((index, record.at_ms, ballot))
                item.evidence.append(index)
            case Kind.OUTCOME | Kind.EXECUTION:
                self._conclude(index, record)
            case _:
                pass

    def _conclude(self, index: int, record: Record) -> None:
        facts = record.facts
        proposal = ProposalId(facts["proposal"])
        item = self._items[proposal]
        item.evidence.append(index)
        if record.kind is Kind.EXECUTION:
            item.state = "executed"
            item.executed_round, item.charter_version = facts["round"], facts["version"]
            self._passed.remove(proposal)
            self._evidence.extend(item.evidence)
            return
        item.state = facts["state"]
        match item.state:
            case "passed":
                self._passed.append(proposal)
            case "stale":
                self._passed.remove(proposal)

    @property
    def evidence(self) -> tuple[int, ...]:
        """Journal indexes of everything that proves the executed proposals."""
        return tuple(self._evidence)

    def find(self, note: bytes) -> int | None:
        """Journal index of a proposal or ballot with the very same text, if it was recorded before."""
        try:
            return self._notes.get(text_digest(notes.parse(note)))
        except NoteError:
            return None

    def decide_submit(self, note: bytes, charter: Charter, now_ms: int) -> list[Record] | Refusal:
        """Records for a signed proposal (PROPOSAL and OPENING) or ballot (BALLOT); [] for a repeat (see `find`).

        `charter` is the one in force. Refused without a trace when it may not stand.
        """
        try:
            parsed = notes.parse(note)
            match ballots.kind(parsed):
                case Proposal.KIND:
                    return self._submit_proposal(parsed, Proposal.from_note(parsed), charter, now_ms)
                case Ballot.KIND:
                    return self._submit_ballot(parsed, Ballot.from_note(parsed), now_ms)
                case kind:
                    return Refusal(
                        Code.NOTE_MALFORMED,
                        f"the note is a {kind[:60]!r}, the chamber takes {Proposal.KIND} and {Ballot.KIND}",
                    )
        except NoteError as error:
            return Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")

    def _submit_proposal(
        self, note: Note, proposal: Proposal, charter: Charter, now_ms: int
    ) -> list[Record] | Refusal:
        if proposal.consortium != charter.consortium.name:
            return Refusal(
                Code.REQUEST_INVALID,
                f"the proposal is for consortium {proposal.consortium!r}, this is {charter.consortium.name!r}",
            )
        member = charter.member(proposal.proposer)
        if member is None:
            return Refusal(
                Code.NOT_AUTHORISED, f"{proposal.proposer!r} is no member, and only members propose"
            )
        wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
        if wrong:
            return wrong
        if text_digest(note) in self._notes:
            return []
        if self._bases.get(proposal.charter) != len(self._charters) - 1:
            return Refusal(
                Code.PROPOSAL_STALE,
                f"it was written on charter {proposal.charter}, version {charter.version} is in force now; "
                f"{member.name} looks at that one and proposes again",
            )
        result = features.apply(charter, proposal.feature, proposal.parameters)
        if isinstance(result, Refusal):
            return result
        wrong = features.may_not_propose(charter, proposal.feature, proposal.parameters, member.name)
        if wrong:
            return wrong
        twin = next((i for i in self._open() if _same(i.proposal, proposal)), None)
        if twin:
            return Refusal(
                Code.PROPOSAL_EXISTS,
                f"{member.name} has this very proposal open as {label(twin.opening.number)}",
                {"proposal": twin.opening.proposal},
            )
        number = len(self._items) + 1
        opening = Opening.of(proposal, charter, number=number, now_ms=now_ms)
        return [
            Record(Kind.PROPOSAL, now_ms, note.data),
            fact(Kind.OPENING, now_ms, **opening.facts),
        ]

    def _submit_ballot(self, note: Note, ballot: Ballot, now_ms: int) -> list[Record] | Refusal:
        item = self._items.get(ballot.proposal)
        if item is None:
            return Refusal(
                Code.PROPOSAL_UNKNOWN, f"there is no proposal {ballot.proposal} to vote on in this journal"
            )
        opening, name = item.opening, label(item.opening.number)
        if ballot.consortium != opening.consortium:
            return Refusal(
                Code.BALLOT_MISMATCH,
                f"the ballot is for consortium {ballot.consortium!r}, this is {opening.consortium!r}",
            )
        member = self._charters[self._bases[opening.charter]].member(ballot.voter)
        if member is None or ballot.voter not in opening.electorate:
            return Refusal(
                Code.NOT_IN_ELECTORATE, f"{ballot.voter!r} was not in the electorate when {name} opened"
            )
        wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
        if wrong:
            return wrong
        if text_digest(note) in self._notes:
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
        if item.tally(now_ms).state != "open" or item.state != "open" or now_ms < opening.opened_ms:
            return Refusal(
                Code.PROPOSAL_CLOSED, f"{name} takes no ballots now: its window is over, or all have voted"
            )
        return [Record(Kind.BALLOT, now_ms, note.data)]

    def decide_close(self, now_ms: int) -> list[Record]:
        """An OUTCOME for each open proposal that is decided by now, in the order they were opened."""
        records = []
        for item in self._open():
            count = item.tally(now_ms)
            if count.state != "open":
                records.append(fact(Kind.OUTCOME, now_ms, **outcome_facts(item.opening, count)))
        return records

    def decide_execute(
        self, charter: Charter, round_number: int, now_ms: int, *, run: str = ""
    ) -> list[Record]:
        """What becomes law at the start of `round_number` of `run`, empty while none goes on: passed proposals due by then, as they passed.

        Each gives EXECUTION and the next CHARTER; one whose ground has moved gives an OUTCOME `stale`. A
        proposal leaves the queue by either, so that nothing is carried out twice.
        """
        assert not self._charters or charter == self._charters[-1], "execute against the charter in force"
        records: list[Record] = []
        history = list(self._charters)
        for item in (self._items[key] for key in self._passed):
            if item.proposal.effective_round > round_number:
                continue
            base = self._bases[item.proposal.charter]
            feature, params = item.proposal.feature, item.proposal.parameters
            changed = features.carry_out(history[base:], feature, params, run=run, round_number=round_number)
            number, key = item.opening.number, item.opening.proposal
            before = charter_file.digest(history[-1])
            if isinstance(changed, Refusal):
                stale = {"proposal": key, "number": number, "charter": before, "round": round_number}
                records.append(fact(Kind.OUTCOME, now_ms, state="stale", why=changed.message, **stale))
                continue
            executed = features.execution_facts(key, number, history[-1], changed, round_number, run)
            records.append(fact(Kind.EXECUTION, now_ms, **executed))
            records.append(Record(Kind.CHARTER, now_ms, charter_file.canonical(changed)))
            history.append(changed)
        return records

    def views(self) -> list[ProposalView]:
        """Every proposal, in the order they were opened."""
        return [self._view(item) for item in self._items.values()]

    def _view(self, item: _Item) -> ProposalView:
        proposal, opening, count = item.proposal, item.opening, item.tally(item.opening.opened_ms)
        base = self._charters[self._bases[proposal.charter]]
        patch = features.patch(base, proposal.feature, proposal.parameters)
        return ProposalView(
            id=opening.proposal,
            number=opening.number,
            title=proposal.title,
            proposer=proposal.proposer,
            feature=proposal.feature,
            parameters=dict(proposal.parameters),
            state=item.state,
            opened_ms=opening.opened_ms,
            closes_ms=opening.closes_ms,
            effective_round=proposal.effective_round,
            executed_round=item.executed_round,
            charter_version=item.charter_version,
            patch=() if isinstance(patch, Refusal) else tuple(patch),
            electorate=dict(opening.electorate),
            for_weight=count.for_weight,
            against_weight=count.against_weight,
            abstain_weight=count.abstain_weight,
            ballots=tuple(
                BallotView(voter=voter, choice=choice, index=index)
                for voter, (choice, index) in count.counted.items()
            ),
            rules=opening.rules_digest,
            electorate_digest=opening.electorate_digest,
        )

    def _open(self) -> list[_Item]:
        return [item for item in self._items.values() if item.state == "open"]


def label(number: int) -> str:
    """A proposal's name for people: P-0001."""
    return f"P-{number:04d}"


def _same(one: Proposal, other: Proposal) -> bool:
    """The same wish of the same member on the same charter; title, nonce and round may differ."""
    keys = ("proposer", "feature", "parameters", "charter")
    return all(getattr(one, key) == getattr(other, key) for key in keys)
