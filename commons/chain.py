"""From the founding charter to the one in force, by proof: what a site checks before it trains.

The coordinator sends records with inclusion proofs; nothing it says is believed without one. The steps:

1. checkpoint: signed by the journal's key
2. consistency: the journal extends the one we saw before, and the charter does not go back
3. inclusion: every record shown stands in the journal, in order
4. founding: version 1 is the charter our partner gave us, and every member in it signed it
5. votes: each later version follows from one proposal: by a member, opened with equal power and the rules of
   the charter then in force, ballots signed and in time, the tally recounted here passes, the feature applied
   here gives exactly the recorded charter, once, and not before its round
6. sites: the keys of sites are signed by the members they belong to
7. witnesses: as many of these sites, and of the charter's outsiders, cosigned the checkpoint as the charter demands

What one log cannot prove alone, that no ballot was left out, its voter can: pass the receipts our partner
holds and step 5 demands that these ballots count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from commons import charter_file, features, merkle, notes
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.cosignature import cosigned
from commons.errors import Code, Refusal
from commons.founding import check_delegation, check_founding
from commons.log import Checkpoint
from commons.names import Digest, ProposalId
from commons.notes import Verifier
from commons.quorum import counted, lacking
from commons.records import Kind, Record
from commons.signed import open_signed, text_digest
from commons.steps import Failed, Steps
from commons.tally import Opening, Tally, outcome_facts, tally, valid

Entry = tuple[int, bytes, Sequence[bytes]]
"""(journal index, leaf, inclusion path)."""
LACKS = "lacks"
"""In the details of a refusal: how many witnesses have not cosigned yet. Nothing else was wrong."""


@dataclass(frozen=True)
class Trust:
    """What a site holds from its partner, not from the coordinator."""

    founding: Charter
    """Charter version 1; its members' keys are the founders'."""
    log: Verifier

    @classmethod
    def of(cls, founding: Charter) -> Self:
        """Trust in the charter our partner signed, and in the journal key it names.

        Raises ValueError when that charter holds a key that is none.
        """
        if problems := charter_file.problems(founding):
            raise ValueError("; ".join(problems))
        return cls(founding, Verifier.from_vkey(founding.consortium.log_key))


@dataclass(frozen=True)
class Executed:
    """A vote that became law, as counted here."""

    proposal: Proposal
    opening: Opening
    tally: Tally
    round: int
    version: int


@dataclass(frozen=True)
class VerifiedCharter:
    charter: Charter
    digest: Digest
    version: int
    checkpoint: Checkpoint
    executed: tuple[Executed, ...]
    sites: Mapping[str, Verifier]
    """Enrolled site -> its signing key."""
    steps: tuple[str, ...]
    """What was checked, one line per numbered step, for people."""


def verify_chain(
    entries: Sequence[Entry],
    checkpoint: bytes,
    consistency: Sequence[bytes],
    *,
    trust: Trust,
    have: Checkpoint | None = None,
    least_version: int = 1,
    receipts: Sequence[tuple[int, bytes]] = (),
) -> VerifiedCharter | Refusal:
    """The charter in force, proven; or a Refusal whose message begins with the step that failed.

    `have` is the last checkpoint verified here and `least_version` the charter version it led to;
    `consistency` proves the way from there. `receipts` are ballots, as (index, note), that our partner cast
    and the journal acknowledged. Pure: the same input gives the same answer; nothing is remembered.
    """
    walk = _Walk(trust)
    try:
        walk.checkpoint(checkpoint)
        walk.consistency(consistency, have)
        walk.inclusion(entries)
        walk.founding()
        walk.votes(least_version, receipts)
        walk.sites()
        walk.witnesses(checkpoint)
        return walk.verified()
    except Failed as failed:
        return failed.refusal


class _Walk(Steps):
    """One verification: each method is a step and leaves what the next ones need."""

    def __init__(self, trust: Trust) -> None:
        super().__init__()
        self.trust = trust
        self.history = [trust.founding]
        self.executed: list[Executed] = []
        self.keys: dict[str, Verifier] = {}

    def checkpoint(self, data: bytes) -> None:
        self._begin("1 checkpoint", Code.SIGNATURE_INVALID)
        self.head = self._attempt(Checkpoint.open, data, self.trust.log)
        self._done(f"signed by journal {self.head.origin} at size {self.head.size}")

    def consistency(self, path: Sequence[bytes], have: Checkpoint | None) -> None:
        self._begin("2 consistency", Code.LOG_FORKED)
        if have is None:
            self._done("first contact: no earlier checkpoint to compare with")
            return
        if have.size > self.head.size:
            self._fail(
                f"the journal had {have.size} records when we last looked, now it shows {self.head.size}"
            )
        head = self.head
        self._attempt(merkle.verify_consistency, have.size, have.root, head.size, head.root, path)
        self._done(f"extends the journal we saw at size {have.size}")

    def inclusion(self, entries: Sequence[Entry]) -> None:
        self._begin("3 inclusion", Code.PROOF_INVALID)
        self.records: dict[int, Record] = {}
        last, at_ms = -1, 0
        for index, leaf, path in entries:
            if index <= last:
                self._fail(f"record {index} is shown after record {last}")
            hashed, head = merkle.leaf_hash(leaf), self.head
            self._attempt(merkle.verify_inclusion, hashed, index, head.size, path, head.root)
            record = self._attempt(Record.parse, leaf)
            if record.at_ms < at_ms:
                self._fail(f"record {index} is older than record {last}: the journal's clock ran backwards")
            self.records[index] = record
            last, at_ms = index, record.at_ms
        self._done(f"{len(self.records)} records stand in the journal")

    def founding(self) -> None:
        self._begin("4 founding", Code.CHARTER_UNPROVEN)
        charter = self.trust.founding
        digest = charter_file.digest(charter)
        genesis = self.records.get(0)
        wanted = {"consortium": charter.consortium.name, "log_key": self.trust.log.vkey}
        if genesis is None or genesis.kind is not Kind.GENESIS or self._facts(0) != wanted:
            self._fail(
                f"record 0 does not begin the journal of {charter.consortium.name} with the key we trust"
            )
        self.charters = [index for index, record in self.records.items() if record.kind is Kind.CHARTER]
        first = self.records[self.charters[0]].body if self.charters else b""
        if first != charter_file.canonical(charter):
            self._fail(f"the journal's first charter is {notes.digest(first)}, our partner signed {digest}")
        signed = set()
        for record in self._of(Kind.FOUNDING):
            partner = check_founding(record.body, charter, digest)
            signed.add(partner if not isinstance(partner, Refusal) else self._fail(partner.message))
        lacking = [m.name for m in charter.members if m.name not in signed]
        if lacking:
            self._fail(f"no signature of {', '.join(lacking)} over charter {digest}")
        self._done(f"charter version 1 is signed by {', '.join(m.name for m in charter.members)}")

    def votes(self, least_version: int, receipts: Sequence[tuple[int, bytes]]) -> None:
        self._begin("5 votes", Code.CHARTER_UNPROVEN)
        for index in self.charters[1:]:
            self._next_version(index)
        version = self.history[-1].version
        if version < least_version:
            self._fail(
                f"the charter goes back to version {version}; we verified version {least_version} before"
            )
        for index, data in receipts:
            self._counts(index, data)
        names = ", ".join(f"P-{e.opening.number:04d}" for e in self.executed)
        self._done(f"charter version {version} follows from {names or 'the founding alone'}")

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
        name = f"proposal {proposal.title!r}"
        if any(done.opening.proposal == key for done in self.executed):
            self._fail(f"{name} is executed a second time for charter version {version}")
        base, opening = self._opening(at, proposal)
        name = f"P-{opening.number:04d} {proposal.title!r}"
        wrong = features.may_not_propose(
            self.history[base], proposal.feature, proposal.parameters, proposal.proposer
        )
        if wrong:
            self._fail(f"{name}: {wrong.message}")
        count = self._outcome(at + 1, index, opening, self.history[base], name)
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
        if facts != features.execution_facts(key, opening.number, current, changed, round_number, run):
            self._fail(f"the execution of {name} (record {index - 1}) does not describe charter {version}")
        self.history.append(changed)
        self.executed.append(Executed(proposal, opening, count, round_number, version))

    def _proposal(self, key: ProposalId) -> tuple[int, Proposal]:
        """The proposal of that id and its index, signed by a member of the charter it was made under."""
        for index, record in self.records.items():
            if record.kind is not Kind.PROPOSAL:
                continue
            note = self._attempt(notes.parse, record.body)
            if ProposalId(text_digest(note)) != key:
                continue
            proposal = self._attempt(Proposal.from_note, note)
            member = self.history[self._in_force(index)].member(proposal.proposer)
            if member is None:
                self._fail(f"proposal {proposal.title!r} is by {proposal.proposer!r}, who is no member")
            wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
            if wrong:
                self._fail(f"proposal {proposal.title!r}: {wrong.message}")
            return index, proposal
        self._fail(f"the executed proposal {key} is not shown")

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
        if opening != Opening.of(proposal, charter, number=opening.number, now_ms=record.at_ms):
            self._fail(
                f"P-{opening.number:04d} was not opened with one vote per member and the rules of charter "
                f"version {charter.version}"
            )
        return base, opening

    def _in_force(self, index: int) -> int:
        """Position in the history of the charter in force when record `index` was written."""
        return max(sum(at < index for at in self.charters[: len(self.history)]) - 1, 0)

    def _outcome(self, opened: int, before: int, opening: Opening, charter: Charter, name: str) -> Tally:
        """The vote, recounted from the ballots and equal to what the journal recorded."""
        for index, record in self.records.items():
            if record.kind is not Kind.OUTCOME or not opened < index < before:
                continue
            facts = self._facts(index)
            if facts.get("proposal") != opening.proposal:
                continue
            count = tally(opening, self._ballots(opened, index, opening, charter, name), record.at_ms)
            if count.state != "passed":
                self._fail(
                    f"{name} did not pass: recounted here it is {count.state}, {count.for_weight} for, "
                    f"{count.against_weight} against, {count.turnout_weight} of {count.total_weight} voted"
                )
            if facts != outcome_facts(opening, count):
                self._fail(f"the tally of {name} in the journal (record {index}) is not the one counted here")
            return count
        self._fail(f"{name} is executed without an outcome")

    def _ballots(
        self, opened: int, decided: int, opening: Opening, charter: Charter, name: str
    ) -> list[tuple[int, int, Ballot]]:
        found = []
        for index, record in self.records.items():
            if record.kind is not Kind.BALLOT or not opened < index < decided:
                continue
            note = self._attempt(notes.parse, record.body)
            ballot = self._attempt(Ballot.from_note, note)
            if ballot.proposal != opening.proposal:
                continue
            member = charter.member(ballot.voter)
            if member is None:
                self._fail(
                    f"a ballot on {name} (record {index}) is by {ballot.voter!r}, who is not in its electorate"
                )
            wrong = open_signed(note, Verifier.from_vkey(member.key), member.name)
            if wrong:
                self._fail(f"a ballot on {name} (record {index}): {wrong.message}")
            if not valid(opening, record.at_ms, ballot):
                self._fail(
                    f"{ballot.voter}'s ballot on {name} (record {index}) was cast outside its window or under "
                    "other rules"
                )
            found.append((index, record.at_ms, ballot))
        return found

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

    def sites(self) -> None:
        self._begin("6 sites", Code.CHARTER_UNPROVEN)
        charter = self.history[-1]
        seen: set[Digest] = set()
        for record in self._of(Kind.SITE):
            found = check_delegation(record.body, charter)
            if isinstance(found, Refusal):
                self._fail(found.message)
            delegation, verifier = found
            text = notes.digest(delegation.compose().encode())
            if text not in seen:
                self.keys[delegation.site] = verifier
            seen.add(text)
        self._done(f"keys of {', '.join(self.keys) or 'no site'} are signed by their partners")

    def witnesses(self, data: bytes) -> None:
        self._begin("7 witnesses", Code.PROOF_INVALID)
        charter = self.history[-1]
        quorum = charter.witnesses.quorum
        if not quorum:
            self._done("the charter asks for none")
            return
        _, seen = self._attempt(lambda: cosigned(data, self.trust.log, counted(charter, self.keys)))
        there = ", ".join(seen) or "nobody"
        if len(seen) < quorum:
            self._fail(
                f"{len(seen)} of the {quorum} witnesses the charter asks for cosigned the checkpoint of size "
                f"{self.head.size} ({there}); missing are {lacking(charter, self.keys, seen)}",
                **{LACKS: quorum - len(seen)},
            )
        self._done(f"cosigned by {there}, the charter asks for {quorum}")

    def verified(self) -> VerifiedCharter:
        charter = self.history[-1]
        return VerifiedCharter(
            charter=charter,
            digest=charter_file.digest(charter),
            version=charter.version,
            checkpoint=self.head,
            executed=tuple(self.executed),
            sites=self.keys,
            steps=tuple(self.steps),
        )

    def _differences(self, wanted: Charter, index: int) -> str:
        shown = self._attempt(charter_file.from_canonical, self.records[index].body)
        different = charter_file.diff(wanted, shown)
        return ", ".join(f"{at} should be {old!r}, is {new!r}" for at, old, new in different[:5])

    def _of(self, kind: Kind) -> list[Record]:
        return [record for record in self.records.values() if record.kind is kind]

    def _facts(self, index: int) -> dict[str, Any]:
        return self._attempt(lambda: self.records[index].facts)
